package heartbeat

import (
	"testing"
)

// FuzzAdmits: the quick look at a signature lets pass exactly what is authentic,
// as far as what it lets pass can be parsed.
func FuzzAdmits(f *testing.F) {
	captured(f, func(data []byte) { f.Add(data) })
	auth := sealing(f)
	for _, index := range []int{1, 2} {
		for _, enc := range []Encoding{Netstring, Text} {
			f.Add(auth.Seal(nil, enc, status(), true, index))
		}
	}
	md5 := md5Auth(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, a := range []*Authenticator{auth, md5} {
			p, err := Parse(data)
			malformed := err != nil
			if err == nil {
				_, err = a.Verify(&p)
			}
			if got := a.Admits(data); got != (err == nil) && !(got && malformed) {
				t.Errorf("admitted: %v, but %v: %q", got, err, data)
			}
		}
	})
}
