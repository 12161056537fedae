package volumedriver

import (
	"context"
	"fmt"
	"slices"

	"scoria/volumedriver/sco"
)

// orphans are objects of the namespace that the head does not name: uploaded, but never made
// part of the volume.
type orphanList struct {
	names   []string
	maxSCO  uint64
	maxPack uint32
	maxTLog uint64
}

// orphansPerCall bounds one List call.
const orphansPerCall = 1000

func (o *opening) orphans(ctx context.Context) (orphanList, error) {
	var list orphanList
	known := make(map[string]bool)
	afterSCO := ""
	if o.head != nil {
		packs, err := recordPacks(o.head.Map)
		if err != nil {
			return list, fmt.Errorf("map checkpoint of the head: %w: %w", ErrCorrupt, err)
		}
		for _, number := range packs {
			known[sco.PackName(number)] = true
		}
		for _, t := range o.head.TLogs {
			known[sco.TLogName(t.Number)] = true
		}
		if o.head.SCO > 0 {
			afterSCO = sco.Name(o.head.SCO)
		}
	}
	for _, from := range []struct{ prefix, after string }{{sco.PrefixSCO, afterSCO}, {sco.PrefixPack, ""}, {sco.PrefixTLog, ""}} {
		for after := from.after; ; {
			names, err := o.d.opts.Store.List(ctx, o.rec.Namespace, from.prefix, after, orphansPerCall)
			if err != nil {
				return list, fmt.Errorf("list %s* of namespace %d: %w", from.prefix, o.rec.Namespace, err)
			}
			for _, name := range names {
				list.add(name, known)
			}
			if len(names) < orphansPerCall {
				break
			}
			after = names[len(names)-1]
		}
	}
	return list, nil
}

func (l *orphanList) add(name string, known map[string]bool) {
	typ, number, err := sco.Parse(name)
	if err != nil || known[name] {
		return
	}
	l.names = append(l.names, name)
	switch typ {
	case sco.SCO:
		l.maxSCO = max(l.maxSCO, number)
	case sco.Pack:
		l.maxPack = max(l.maxPack, uint32(number))
	case sco.TLog:
		l.maxTLog = max(l.maxTLog, number)
	}
}

// garbage returns those orphans that the local log and map will not make part of the volume
// after all: what had been stored of them was lost here with the machine's power, or is
// out of date.
func (o *opening) garbage(orphans []string) ([]string, error) {
	packs, err := recordPacks(o.record)
	if err != nil {
		return nil, err
	}
	wanted := make(map[string]bool)
	for _, number := range packs {
		wanted[sco.PackName(number)] = true
	}
	for _, s := range o.v.buf.ClosedSCOs(o.v.lastCommittedSCO()) {
		wanted[sco.Name(s.Number)] = true
	}
	return slices.DeleteFunc(orphans, func(name string) bool { return wanted[name] }), nil
}
