package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/memory"
)

// A director that another names runs once, however many reloads come at once,
// and is active when that one is, also if it is started at that moment.
func TestNamedDirectors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	service := func(last int) string {
		return fmt.Sprintf("virtual=127.0.0.%d:80\n\tchecktype=on\n\treal=127.0.0.9:80 masq\n", last)
	}
	second := write("second.cf", service(2))
	first := write("first.cf", "execute="+second+"\n"+service(1))
	p, err := memory.New(memory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ds := newDirectors(directorsOptions{plane: p, sink: func(e model.Event) { t.Log(e.Text) }, quiet: true})
	d, err := loadDirector(first)
	if err != nil {
		t.Fatal(err)
	}
	in, err := ds.add(*d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = in.loop.Run(ctx) })
	wg.Go(func() { _ = ds.Run(ctx) })
	<-ds.Ready()
	for i := range 20 {
		text := service(1)
		if i%2 == 1 {
			text = "execute=" + second + "\n" + text
		}
		write("first.cf", text)
		ds.reload()
		var both sync.WaitGroup
		for range 3 {
			both.Go(func() { ds.followAlone(in) })
		}
		both.Go(func() { ds.setActive(in, i%2 == 1) })
		both.Wait()
	}
	ok := func() bool {
		files := map[string]int{}
		for _, one := range ds.instances() {
			files[one.file]++
			if !one.loop.Active() {
				return false
			}
		}
		return len(files) == 2 && files[first] == 1 && files[second] == 1
	}
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			for _, one := range ds.instances() {
				t.Errorf("runs: %s, active %v", one.file, one.loop.Active())
			}
			t.Fatal("not each of the two files once, and active")
		}
	}
	stop()
	wg.Wait()
	ds.close("TERM")
	if got := ds.instances(); len(got) != 1 {
		t.Errorf("%d directors are left, want the first", len(got))
	}
}
