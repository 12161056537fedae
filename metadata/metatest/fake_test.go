package metatest

import (
	"testing"

	"scoria/metadata/nsm"
)

func TestFakeNSM(t *testing.T) { TestNSM(t, func(*testing.T) nsm.API { return NewNSM() }) }
