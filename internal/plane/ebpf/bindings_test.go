package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Where there is no room for all, the error says for how many there is, in the
// table as it is, and what makes more.
func TestBindMoreThanThereIsRoomFor(t *testing.T) {
	o := testOptions()
	o.MaxClients = 8
	p := open(t, o)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	o.MaxClients = 0 // whatever the table has
	p = open(t, o)
	service := addService(model.TCP, vip(0, 80), "rr")
	service.Service.Persistence = model.Persistence{Enabled: true, Timeout: 5 * time.Minute}
	apply(t, p, service, addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1))
	var all []model.Binding
	for i := range byte(10) {
		all = append(all, model.Binding{Service: service.Service.Key, Client: netip.AddrFrom4([4]byte{10, 1, 0, 50 + i}),
			Real: netip.MustParseAddrPort("10.240.0.20:8000"), Expires: time.Minute})
	}
	n, err := p.Bind(t.Context(), all)
	const want = "no room for more than 8 clients of persistent services: 8 of 10 were taken over: batuta run --ebpf-table clients=N makes more"
	if n != 8 || err == nil || err.Error() != want {
		t.Errorf("%d, %v; want 8, %s", n, err, want)
	}
	if have, err := p.Bindings(t.Context()); len(have) != 8 || err != nil {
		t.Errorf("%d bindings, %v; want 8", len(have), err)
	}
}
