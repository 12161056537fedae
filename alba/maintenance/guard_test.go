package maintenance_test

import (
	"context"
	"sync"
	"testing"

	"scoria/alba"
	"scoria/alba/albatest"
	"scoria/alba/maintenance"
	"scoria/metadata"
	"scoria/metadata/nsm"
)

// hookNSM lets a test come between an upload and its commit, or into the middle of a
// collection.
type hookNSM struct {
	nsm.API
	commit func(txn *nsm.Txn)
	closed func(below metadata.GCEpoch)
}

func (h *hookNSM) Apply(ctx context.Context, ns metadata.NamespaceID, txn nsm.Txn) error {
	if h.commit != nil {
		h.commit(&txn)
	}
	return h.API.Apply(ctx, ns, txn)
}

func (h *hookNSM) GCEpochs(ctx context.Context, ns metadata.NamespaceID, op nsm.GCOp) (metadata.GCEpoch, metadata.GCEpoch, error) {
	from, next, err := h.API.GCEpochs(ctx, ns, op)
	if err == nil && !op.Open && h.closed != nil {
		h.closed(op.CloseBelow)
	}
	return from, next, err
}

// TestCollectionBeforeCommit: an upload whose fragments are collected before it commits is
// refused and made again; nothing that a manifest names is missing.
func TestCollectionBeforeCommit(t *testing.T) {
	var h *hookNSM
	cl := albatest.New(t, albatest.Config{Client: clientOptions(), WrapNSM: func(a nsm.API) nsm.API { h = &hookNSM{API: a}; return h }})
	ns := cl.Namespace("v")
	a := newAgent(t, cl, maintenance.Options{})
	var once sync.Once
	h.commit = func(*nsm.Txn) { once.Do(func() { run(t, a, maintenance.TaskGC) }) }
	all := fill(t, cl, ns, 1, 1<<20+5)
	check(t, cl, ns, all)
	run(t, a, maintenance.TaskGC)
	wantClean(t, cl, ns)
}

// TestOpenUploadsAreNotCollected: an upload under the newest epoch that began after older
// ones were closed, and commits after the sweep, is left alone.
func TestOpenUploadsAreNotCollected(t *testing.T) {
	var h *hookNSM
	cl := albatest.New(t, albatest.Config{Client: clientOptions(), WrapNSM: func(a nsm.API) nsm.API { h = &hookNSM{API: a}; return h }})
	ns := cl.Namespace("v")
	all := fill(t, cl, ns, 1, 1<<20+5) // its tag gives the collection something to look for
	want := data(42, 1<<20)
	stored, swept, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var begin, reach sync.Once
	h.closed = func(below metadata.GCEpoch) {
		if below == 0 {
			return // somebody only asks
		}
		begin.Do(func() {
			h.commit = func(txn *nsm.Txn) { // the first attempt is under the closed epoch
				if len(txn.Puts) == 1 && txn.Puts[0].GCEpoch >= below {
					reach.Do(func() { close(stored) })
					<-swept
				}
			}
			go func() {
				done <- cl.Client.Apply(t.Context(), ns, alba.Txn{Puts: []alba.PutObject{{Name: "late", Data: want}}})
			}()
			<-stored
		})
	}
	run(t, newAgent(t, cl, maintenance.Options{}), maintenance.TaskGC)
	close(swept)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	all["late"] = want
	check(t, cl, ns, all)
	h.closed = nil
	run(t, newAgent(t, cl, maintenance.Options{}), maintenance.TaskGC)
	if missing, _ := audit(t, cl, ns); missing > 0 {
		t.Fatalf("%d keys that manifests name are missing", missing)
	}
}
