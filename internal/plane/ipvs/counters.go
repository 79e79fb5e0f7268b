package ipvs

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"

	"github.com/batuta-ha/batuta/internal/model"
)

// counts are totals, and how much they grow in a second as the kernel
// estimates it.
type counts struct{ total, rate model.Counters }

// stats reads counters, of which newer kernels send both the 32-bit and the
// 64-bit form: the larger of two is the one that has not wrapped.
func stats(outer *netlink.AttributeDecoder, c *counts) error {
	outer.Nested(func(d *netlink.AttributeDecoder) error {
		for d.Next() {
			to := c.member(d.Type())
			if to == nil {
				continue
			}
			switch b := d.Bytes(); len(b) {
			case 4:
				*to = max(*to, uint64(binary.NativeEndian.Uint32(b)))
			case 8:
				*to = max(*to, binary.NativeEndian.Uint64(b))
			default:
				return fmt.Errorf("%w: counter of %d bytes", errForm, len(b))
			}
		}
		return nil
	})
	return nil
}

// member is where a counter belongs; nil for what is none.
func (c *counts) member(attribute uint16) *uint64 {
	of := &c.total
	if attribute >= statsCPS {
		of, attribute = &c.rate, attribute-statsCPS+statsConns
	}
	switch attribute {
	case statsConns:
		return &of.Connections
	case statsInPkts:
		return &of.PacketsIn
	case statsOutPkts:
		return &of.PacketsOut
	case statsInBytes:
		return &of.BytesIn
	case statsOutBytes:
		return &of.BytesOut
	}
	return nil
}
