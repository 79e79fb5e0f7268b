package memory

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is read is written, and what was written is read as the same.
func FuzzTableFile(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"tcp 192.0.2.1:80":{"key":"tcp 192.0.2.1:80","scheduler":"rr","persistent":null,"netmask":"","flags":"","ops":false,` +
		`"reals":{"10.0.0.1:80":{"addr":"10.0.0.1:80","forward":"masq","weight":1,"upper":0,"lower":0}}}}`))
	f.Add([]byte(`{"udp [2001:db8::1]:53":{"scheduler":"wlc","persistent":600,"netmask":"64","ops":true,"reals":{"[2001:db8::2]:53":{"forward":"gate","weight":0,"upper":9}}}}`))
	f.Add([]byte(`{"fwm 1":{"scheduler":"mh","flags":"mh-port","persistent":0,"netmask":"255.255.0.0","reals":{"10.0.0.1:0":{"forward":"ipip"}}},"fwm6 1":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := decodeTable(b)
		if err != nil {
			return
		}
		again, err := decodeTable(encodeTable(table))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, encodeTable(table))
		}
		if d := cmp.Diff(table.String(), again.String()); d != "" {
			t.Fatalf("written and read (-want +got):\n%s", d)
		}
	})
}
