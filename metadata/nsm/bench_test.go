package nsm_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"scoria/metadata"
	"scoria/metadata/metatest"
	"scoria/metadata/nsm"
	"scoria/metadata/nsm/state"
	"scoria/metadata/raftnode"
)

// BenchmarkPut measures the commit of a SCO's manifest (4 chunks of 4+2) on a solo node,
// by how many writers there are.
func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			n, err := raftnode.Open(raftnode.Options{ID: "n", Dir: b.TempDir(), Machine: state.Machine{}, Solo: true, Bootstrap: true})
			if err != nil {
				b.Fatal(err)
			}
			defer n.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := n.WaitLeader(ctx); err != nil {
				b.Fatal(err)
			}
			s := nsm.NewService(n)
			if err := s.CreateNamespace(ctx, 1, metatest.Preset("p")); err != nil {
				b.Fatal(err)
			}
			var next atomic.Uint64
			b.SetParallelism((writers + 1) / 2)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := next.Add(1)
					m := metatest.Manifest(fmt.Sprintf("sco/%016x", i), metatest.ObjectID(i), 4, 2, 4, 1, 2, 3, 4, 5, 6)
					if err := s.Apply(ctx, 1, nsm.Txn{Puts: []metadata.Manifest{m}}); err != nil {
						b.Error(err)
					}
				}
			})
			b.StopTimer()
			st := n.Stats()
			b.ReportMetric(float64(st.Commands)/float64(st.Batches), "commands/batch")
		})
	}
}
