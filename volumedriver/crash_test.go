package volumedriver_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"scoria/internal/vfs"
	"scoria/volumedriver"
	"scoria/volumedriver/volumetest"
)

// smallOptions make everything happen within few operations: SCOs of 8 clusters, TLogs of 2,
// checkpoints and drains all the time.
func smallOptions() volumedriver.Options {
	return volumedriver.Options{
		SCOClusters: 8, TLogSCOs: 2, Uploads: 2, MapCacheBytes: 1 << 20, CheckpointDirty: 8 << 10, CheckpointTLogs: 2,
		DrainDelay: 4 * time.Millisecond, Tick: 2 * time.Millisecond, IdleDelay: -1, WriteBufferBytes: 4 << 20,
	}
}

// stress tells whether long runs are asked for (SCORIA_STRESS=1).
func stress() bool { return os.Getenv("SCORIA_STRESS") != "" }

// TestCrash kills the gateway at many moments, in all ways.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("SCORIA_SEED"); s != "" { // replay
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	budget := 12 * time.Second
	if stress() {
		budget = stressTime(t)
	}
	if testing.Short() {
		budget = 3 * time.Second
	}
	end := time.Now().Add(budget)
	runs := 0
	for time.Now().Before(end) {
		plan := volumetest.Plan{Seed: r.Uint64(), Rounds: 4, Steps: 150, Clusters: 256, Options: smallOptions(), Journal: r.IntN(2) == 0,
			Loss: vfs.Modes()[r.IntN(4)], Wipe: r.IntN(5) == 0, CrashOpen: r.IntN(3) == 0}
		if r.IntN(2) == 0 {
			plan.Options.WriteBufferBytes = 512 << 10 // cached segments are removed all the time
		}
		switch r.IntN(5) {
		case 0:
		case 1, 2:
			plan.CrashFS = 1 + r.Int64N(1+r.Int64N(400))
		default:
			plan.CrashStore = 1 + r.Int64N(1+r.Int64N(60))
		}
		t.Run(fmt.Sprintf("%d", runs), func(t *testing.T) { volumetest.Run(t, plan) })
		if t.Failed() {
			return
		}
		runs++
	}
	t.Logf("%d runs of 4 rounds", runs)
}

// stressTime is how long a long run may take: SCORIA_STRESS as a duration, or ten minutes.
func stressTime(t *testing.T) time.Duration {
	if d, err := time.ParseDuration(os.Getenv("SCORIA_STRESS")); err == nil {
		return d
	}
	t.Log("SCORIA_STRESS is no duration; ten minutes it is")
	return 10 * time.Minute
}

// TestCrashConcurrent does it under several writers.
func TestCrashConcurrent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	budget := 4 * time.Second
	if stress() {
		budget = stressTime(t)
	}
	end := time.Now().Add(budget)
	for n := 0; time.Now().Before(end) && !t.Failed(); n++ {
		plan := volumetest.Plan{Seed: r.Uint64(), Steps: 120, Clusters: 256, Options: smallOptions(), Loss: vfs.Modes()[r.IntN(4)], Wipe: r.IntN(4) == 0}
		if r.IntN(2) == 0 {
			plan.CrashFS = 1 + r.Int64N(1500)
		} else {
			plan.CrashStore = 1 + r.Int64N(150)
		}
		volumetest.RunConcurrent(t, plan, 1+r.IntN(6))
	}
}

// TestCrashEveryOperation kills the gateway at its first, second, third … operation on the disk
// and on the object store, until a run has no more of them; from the start of the gateway
// on, so that each step of creation and recovery has its turn.
func TestCrashEveryOperation(t *testing.T) {
	if testing.Short() {
		t.Skip("a second or two")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, loss := range []vfs.CrashMode{vfs.CrashLost, vfs.CrashKept} {
		for _, set := range []func(p *volumetest.Plan, k int64){
			func(p *volumetest.Plan, k int64) { p.CrashFS = k },
			func(p *volumetest.Plan, k int64) { p.CrashStore = k },
		} {
			k, tried := int64(1), 0
			end := time.Now().Add(3 * time.Second)
			for ; k < 300; k++ {
				if !stress() && time.Now().After(end) {
					k += rand.Int64N(20) // slow (the race detector): not all of them
				}
				tried++
				plan := volumetest.Plan{Seed: seed, Rounds: 3, Steps: 20, Clusters: 64, Options: smallOptions(), Loss: loss, CrashOpen: true}
				set(&plan, k)
				if !volumetest.Run(t, plan) {
					break
				}
			}
			t.Logf("%v: %d of %d moments", loss, tried, k-1)
		}
	}
}
