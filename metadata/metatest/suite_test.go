package metatest

import (
	"testing"

	"scoria/metadata/abm"
	abmstate "scoria/metadata/abm/state"
	"scoria/metadata/nsm"
	nsmstate "scoria/metadata/nsm/state"
)

func TestFakeABM(t *testing.T) { TestABM(t, func(*testing.T) abm.API { return NewABM() }) }
func TestFakeNSM(t *testing.T) { TestNSM(t, func(*testing.T) nsm.API { return NewNSM() }) }

func TestSoloABM(t *testing.T) {
	TestABM(t, func(t *testing.T) abm.API { return SoloABM(t, t.TempDir()) })
}

func TestSoloNSM(t *testing.T) {
	TestNSM(t, func(t *testing.T) nsm.API { return SoloNSM(t, t.TempDir()) })
}

func TestClientABM(t *testing.T) {
	TestABM(t, func(t *testing.T) abm.API { return NewCluster(t, abmstate.Machine{}, 1).ABMClient() })
}

func TestClientNSM(t *testing.T) {
	TestNSM(t, func(t *testing.T) nsm.API { return NewCluster(t, nsmstate.Machine{}, 1).NSMClient() })
}
