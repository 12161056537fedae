package system

import (
	"errors"

	"scoria/alba/osd"
)

func dialOSD(addr, uuid string) (osd.API, error) { return nil, errors.ErrUnsupported }
