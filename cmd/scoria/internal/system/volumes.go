package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"scoria/cmd/scoria/internal/admin"
	"scoria/metadata"
	"scoria/volumedriver"
)

// This file is the admin interface's view of volumes.

var (
	_ admin.Volumes = (*System)(nil)
	_ admin.Store   = (*System)(nil)
)

// adminError adds what the admin interface needs to know of an error: its kind, and a hint.
func adminError(err error) error {
	var e *admin.Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return &admin.Error{Code: admin.CodeNotFound, Message: err.Error(), Hint: "see scoria volume list"}
	case errors.Is(err, volumedriver.ErrInUse):
		return &admin.Error{Code: admin.CodeBusy, Message: err.Error(), Hint: "disconnect its clients, or use --force"}
	case errors.Is(err, metadata.ErrState), errors.Is(err, volumedriver.ErrClosed):
		return &admin.Error{Code: admin.CodeBusy, Message: err.Error(), Hint: "something else is being done to it; look again in a moment"}
	case errors.Is(err, volumedriver.ErrOwned), errors.Is(err, volumedriver.ErrFenced):
		return &admin.Error{Code: admin.CodeBusy, Message: err.Error()}
	case errors.Is(err, volumedriver.ErrInvalid), errors.Is(err, syscall.EINVAL):
		return &admin.Error{Code: admin.CodeInvalid, Message: err.Error()}
	case errors.Is(err, volumedriver.ErrUnavailable):
		return &admin.Error{Code: admin.CodeUnavailable, Message: err.Error(), Hint: "see scoria status"}
	}
	return admin.AsError(err)
}

func (s *System) adminVolume(r volumedriver.Record) admin.Volume {
	v := admin.Volume{
		Name: r.Name, ID: r.ID, Namespace: r.Namespace, Size: r.Size, Preset: r.Preset, Created: r.Created,
		Owner: r.Owner, Epoch: r.Epoch, State: "closed", Durability: string(volumedriver.DurabilityLocal), URIs: s.URIs(r.Name),
	}
	st, open := s.driver.Status(r.ID)
	if !open {
		if why := s.failures.of(r.Name); why != "" {
			v.State, v.Problem = "failed", "cannot be opened: "+why
		}
		return v
	}
	v.State, v.Size, v.Mapped, v.Epoch, v.Clients = "open", st.Size, st.Mapped, st.Epoch, st.Handles
	v.Durability, v.DirtyBytes, v.LastSeq, v.DrainedSeq = string(st.Durability), uint64(max(st.DirtyBytes, 0)), st.LastSeq, st.CommittedSeq
	switch {
	case st.Failed != "":
		v.State, v.Problem = "failed", st.Failed
	case st.Reason != "":
		v.State, v.Problem = "degraded", st.Reason+" (since "+st.Degraded.Format("2006-01-02 15:04:05")+")"
	case st.Lost != "":
		v.Problem = st.Lost
	case st.Stats.Corrupt > 0:
		v.Problem = fmt.Sprintf("%d reads failed because data is damaged beyond repair", st.Stats.Corrupt)
	}
	return v
}

// Volumes implements admin.Volumes.
func (s *System) Volumes(ctx context.Context) ([]admin.Volume, error) {
	recs, err := s.driver.List(ctx)
	if err != nil {
		return nil, adminError(err)
	}
	out := make([]admin.Volume, len(recs))
	for i, r := range recs {
		out[i] = s.adminVolume(r)
	}
	return out, nil
}

// Volume implements admin.Volumes.
func (s *System) Volume(ctx context.Context, name string) (admin.Volume, error) {
	r, err := s.driver.Lookup(ctx, name)
	if err != nil {
		return admin.Volume{}, adminError(err)
	}
	return s.adminVolume(r), nil
}

// CreateVolume implements admin.Volumes. The size is rounded up to whole clusters.
func (s *System) CreateVolume(ctx context.Context, in admin.CreateVolume) (admin.Volume, error) {
	r, err := s.driver.Create(ctx, in.Name, roundUp(in.Size), in.Preset)
	if err != nil {
		return admin.Volume{}, adminError(err)
	}
	return s.adminVolume(r), nil
}

// roundUp rounds a size up to whole clusters; sizes beyond the limit stay beyond it.
func roundUp(n uint64) uint64 {
	if n > volumedriver.MaxSize {
		return n
	}
	return (n + volumedriver.ClusterSize - 1) &^ (volumedriver.ClusterSize - 1)
}

// UpdateVolume implements admin.Volumes.
func (s *System) UpdateVolume(ctx context.Context, name string, in admin.UpdateVolume) (admin.Volume, error) {
	if in.Size != 0 {
		if err := s.driver.Resize(ctx, name, roundUp(in.Size)); err != nil {
			return admin.Volume{}, adminError(err)
		}
	}
	if in.Name != "" && in.Name != name {
		if err := s.driver.Rename(ctx, name, in.Name); err != nil {
			return admin.Volume{}, adminError(err)
		}
		s.failures.note(name, nil)
		name = in.Name
	}
	return s.Volume(ctx, name)
}

// DeleteVolume implements admin.Volumes.
func (s *System) DeleteVolume(ctx context.Context, name string, force bool) error {
	if err := s.driver.Delete(ctx, name, force); err != nil {
		return adminError(err)
	}
	s.failures.note(name, nil)
	return nil
}

// Drain implements admin.Volumes. Without wait it goes on after the answer.
func (s *System) Drain(ctx context.Context, name string, wait bool, progress func(admin.DrainProgress)) error {
	if !wait {
		if _, err := s.driver.Lookup(ctx, name); err != nil {
			return adminError(err)
		}
		s.background("drain of "+name, func() error {
			if err := s.driver.Drain(s.bg, name, nil); err != nil && s.bg.Err() == nil {
				s.cfg.Logger.Error("drain failed", "volume", name, "err", err)
			}
			return nil
		})
		return nil
	}
	var total int64
	err := s.driver.Drain(ctx, name, func(p volumedriver.Drained) {
		total = max(total, p.Bytes)
		left := p.Bytes
		if p.Committed >= p.Target {
			left = 0
		}
		progress(admin.DrainProgress{Total: uint64(total), Left: uint64(max(left, 0))})
	})
	if err != nil {
		return adminError(err)
	}
	progress(admin.DrainProgress{Total: uint64(total), Done: true})
	return nil
}
