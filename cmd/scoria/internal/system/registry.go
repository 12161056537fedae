package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"scoria/alba"
	"scoria/metadata"
	"scoria/metadata/abm"
	"scoria/volumedriver"
)

// registry makes the ALBA manager (and the ALBA client, for namespaces) the Registry of the
// volume driver.
type registry struct {
	abm     abm.API
	client  *alba.Client
	gateway string // owner name of this system's volumes
}

var _ volumedriver.Registry = registry{}

// namespaceName is how the namespace of a new volume is called. It cannot follow the volume's
// name, which may change and be given again.
func namespaceName(now time.Time, volume string) string {
	return fmt.Sprintf("%s%x-%s", namespacePrefix, now.UnixNano(), cut(volume, 64))
}

// namespacePrefix marks the namespaces of volumes.
const namespacePrefix = "vol-"

// cut shortens s to at most n bytes without breaking a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

func (r registry) Create(ctx context.Context, name string, size uint64, preset string) (volumedriver.Record, error) {
	if _, err := r.abm.Volume(ctx, name); err == nil {
		return volumedriver.Record{}, also(fmt.Errorf("volume %q already exists", name), fs.ErrExist)
	} else if !errors.Is(err, metadata.ErrNotFound) {
		return volumedriver.Record{}, driverError(err)
	}
	if preset == "" {
		p, err := r.defaultPreset(ctx)
		if err != nil {
			return volumedriver.Record{}, err
		}
		preset = p
	}
	ns, err := r.client.CreateNamespace(ctx, namespaceName(time.Now(), name), preset)
	if err != nil {
		return volumedriver.Record{}, driverError(fmt.Errorf("make the namespace of volume %q: %w", name, err))
	}
	v, err := r.abm.CreateVolume(ctx, metadata.VolumeRecord{Name: name, Namespace: ns.ID, Size: size, Preset: preset})
	if err != nil {
		if !errors.Is(err, metadata.ErrUnavailable) {
			// Nobody knows this namespace; after ErrUnavailable the volume may have been made.
			err = errors.Join(err, r.client.DeleteNamespace(ctx, ns.ID))
		}
		return volumedriver.Record{}, driverError(fmt.Errorf("register volume %q: %w", name, err))
	}
	return record(v), nil
}

func (r registry) defaultPreset(ctx context.Context) (string, error) {
	ps, err := r.abm.Presets(ctx)
	if err != nil {
		return "", driverError(err)
	}
	for _, p := range ps {
		if p.Default {
			return p.Name, nil
		}
	}
	return "", fmt.Errorf("there is no default preset; name one by --preset: %w", volumedriver.ErrInvalid)
}

func record(v metadata.VolumeRecord) volumedriver.Record {
	return volumedriver.Record{
		ID: uint64(v.ID), Name: v.Name, Namespace: uint64(v.Namespace), Size: v.Size, Preset: v.Preset, Created: v.Created,
		Epoch: uint64(v.Epoch), Owner: v.Owner, LastOwner: v.LastOwner, OwnerSince: uint64(v.OwnerSince),
	}
}

func (r registry) Lookup(ctx context.Context, name string) (volumedriver.Record, error) {
	v, err := r.abm.Volume(ctx, name)
	if err != nil {
		return volumedriver.Record{}, driverError(err)
	}
	return record(v), nil
}

func (r registry) List(ctx context.Context) ([]volumedriver.Record, error) {
	vs, err := r.abm.ListVolumes(ctx)
	if err != nil {
		return nil, driverError(err)
	}
	out := make([]volumedriver.Record, 0, len(vs))
	for _, v := range vs {
		if !v.Deleting {
			out = append(out, record(v))
		}
	}
	return out, nil
}

func (r registry) Acquire(ctx context.Context, id uint64, owner string, lease time.Duration, force bool) (volumedriver.Record, error) {
	v, err := r.abm.AcquireVolume(ctx, metadata.VolumeID(id), owner, lease, force)
	if err != nil {
		return volumedriver.Record{}, driverError(err)
	}
	return record(v), nil
}

func (r registry) Renew(ctx context.Context, owner string, lease time.Duration) error {
	return driverError(r.abm.RenewOwner(ctx, owner, lease))
}

func (r registry) Release(ctx context.Context, id, epoch uint64) error {
	return driverError(r.abm.ReleaseVolume(ctx, metadata.VolumeID(id), metadata.Epoch(epoch)))
}

func (r registry) Resize(ctx context.Context, id, epoch, size uint64) error {
	return driverError(r.abm.ResizeVolume(ctx, metadata.VolumeID(id), metadata.Epoch(epoch), size))
}

func (r registry) Rename(ctx context.Context, id uint64, name string) error {
	return driverError(r.abm.RenameVolume(ctx, metadata.VolumeID(id), name))
}

// Delete marks the volume, then its namespace, then removes the record. A crash in between
// leaves a marked volume, which finishDeletes ends at the next start. The driver has taken the
// volume out of service; what this gateway still owns is given back first, as the ABM deletes
// no volume that is in use. One that another gateway owns stays: volumedriver.ErrOwned.
func (r registry) Delete(ctx context.Context, id uint64) error {
	vs, err := r.abm.ListVolumes(ctx)
	if err != nil {
		return driverError(err)
	}
	i := slices.IndexFunc(vs, func(v metadata.VolumeRecord) bool { return uint64(v.ID) == id })
	if i < 0 {
		return fmt.Errorf("volume %d: %w", id, fs.ErrNotExist)
	}
	if vs[i].Owner == r.gateway {
		if err := r.abm.ReleaseVolume(ctx, vs[i].ID, vs[i].Epoch); err != nil {
			return driverError(err)
		}
	}
	if err := r.abm.MarkVolumeDeleting(ctx, vs[i].ID); err != nil {
		return driverError(err)
	}
	return r.finishDelete(ctx, vs[i])
}

func (r registry) finishDelete(ctx context.Context, v metadata.VolumeRecord) error {
	if err := r.client.DeleteNamespace(ctx, v.Namespace); err != nil {
		return driverError(err)
	}
	return driverError(r.abm.RemoveVolume(ctx, v.ID))
}

// finishDeletes ends the deletes that a crash has cut off.
func (r registry) finishDeletes(ctx context.Context) error {
	vs, err := r.abm.ListVolumes(ctx)
	if err != nil {
		return driverError(err)
	}
	for _, v := range vs {
		if v.Deleting {
			if err := r.finishDelete(ctx, v); err != nil {
				return fmt.Errorf("finish the delete of volume %q: %w", v.Name, err)
			}
		}
	}
	return nil
}

// removeOrphans removes namespaces of volumes whose creation was cut off before the volume's
// record was made. It runs at a start, when no creation is under way.
func (r registry) removeOrphans(ctx context.Context) error {
	used := make(map[metadata.NamespaceID]bool)
	vs, err := r.abm.ListVolumes(ctx)
	if err != nil {
		return driverError(err)
	}
	for _, v := range vs {
		used[v.Namespace] = true
	}
	all, err := r.abm.ListNamespaces(ctx)
	if err != nil {
		return driverError(err)
	}
	for _, n := range all {
		if strings.HasPrefix(n.Name, namespacePrefix) && !used[n.ID] && n.State != metadata.NamespaceDeleting {
			if err := r.client.DeleteNamespace(ctx, n.ID); err != nil {
				return driverError(fmt.Errorf("remove the namespace %q of a volume that was never made: %w", n.Name, err))
			}
		}
	}
	return nil
}
