# Batuta: build, show, test. `make help` lists the targets; CONTRIBUTING.md explains them.
GO        ?= go
CACHE     ?= $(CURDIR)/.cache
T         ?= 5000x
GOLANGCI  := v2.15.0
# The race detector needs a C compiler; without one the tests run without it and say so.
RACE      := $(shell command -v gcc >/dev/null 2>&1 && echo -race)
BATUTA_BIN := $(CURDIR)/bin/batuta
export BATUTA_BIN

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## write bin/batuta
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o bin/batuta ./cmd/batuta

.PHONY: demo
demo: build ## a whole cluster on this machine, load, both kinds of failover
	bin/batuta demo

.PHONY: test
test: build needs unit sim fuzz lint generated ## everything: unit, root and lab tests, simulation, fuzz smoke, lint, generated code

.PHONY: needs
needs: ## say what of `make test` this machine has to leave out
	@scripts/needs

.PHONY: unit
unit: build ## all Go tests, as root with the kernel and lab tests
	$(GO) test $(RACE) -timeout 30m ./...

.PHONY: sim
sim: ## N fault schedules of two nodes in virtual time (default 10000), from seed SEED on
	$(GO) test -count=1 -timeout 24h -run 'TestSchedules|TestStories|TestExact' ./internal/sim -v -schedules=$(or $(N),10000) -from=$(or $(SEED),1) | grep -v '^=== \|--- PASS'

.PHONY: sim-mutants
sim-mutants: ## break one rule at a time; the simulation must find each
	@GO='$(GO)' scripts/sim-mutants

.PHONY: interop
interop: build ## Batuta beside the real Heartbeat 3.0.6: every combination of key, medium, failback and story (root, 25 min)
	BATUTA_INTEROP=all $(GO) test -count=1 -timeout 1h -run '^(TestInterop|TestRealDevices|TestFencingByRealPrograms)$$' -v ./internal/lab

.PHONY: fuzz
fuzz: ## each fuzz target for T executions or seconds (default 5000x)
	@GO='$(GO)' T='$(T)' scripts/fuzz

.PHONY: lint
lint: $(CACHE)/bin/golangci-lint-$(GOLANGCI) ## gofmt, go vet and the linters of .golangci.yml
	@test -z "$$(gofmt -l cmd internal bpf *.go)" || { gofmt -l cmd internal bpf *.go; echo 'run gofmt -w on these files'; exit 1; }
	$(CACHE)/bin/golangci-lint-$(GOLANGCI) run ./...

$(CACHE)/bin/golangci-lint-$(GOLANGCI):
	@mkdir -p $(CACHE)/bin
	GOBIN=$(CACHE)/bin GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	@mv $(CACHE)/bin/golangci-lint $@

.PHONY: generate
generate: ## eBPF objects from bpf/ (needs clang 14 and libbpf-dev)
	$(GO) generate ./...

.PHONY: generated
generated: ## generate again and compare with what is committed
	@scripts/generated

.PHONY: bench
bench: ## benchmarks of the pure parts
	$(GO) test -run '^$$' -bench . -benchmem ./internal/...

.PHONY: bench-checks
bench-checks: build ## what checks cost, beside the real ldirectord (root, 10 min)
	BATUTA_BENCH=checks $(GO) test -count=1 -timeout 1h -run '^TestBenchChecks$$' -v ./internal/cli

.PHONY: bench-sla
bench-sla: build ## a yearly statement of ten million intervals: time and memory (3 min, 400 MB of disk)
	BATUTA_BENCH=sla $(GO) test -count=1 -timeout 20m -run '^TestBenchSLA$$' -v ./internal/journal

.PHONY: bench-ipvs
bench-ipvs: ## a large table into the kernel's IPVS, beside ipvsadm -R in the same kernel, and its list of connections (root, 8 min; BATUTA_RUN=TestBenchList for that alone)
	BATUTA_BENCH=ipvs $(GO) test -count=1 -timeout 1h -run '^TestBenchIPVS$$' -v ./internal/lab

.PHONY: bench-failover
bench-failover: build ## how long nobody has the address, beside keepalived and Heartbeat (root, 1 h; ROUNDS=30 PAUSES=100 SYSTEMS=Batuta EVENTS=hand-over)
	BATUTA_BENCH=failover $(GO) test -count=1 -timeout 3h -run '^TestBenchFailover$$' -v ./internal/lab

.PHONY: bench-garbage
bench-garbage: build ## what a flood of garbage on the heartbeat port costs a node (root, 4 min; RATE=200000 SECONDS=8 ONLY=peer REALTIME=1 METHOD=xchacha20)
	BATUTA_BENCH=garbage SECONDS=$(or $(SECONDS),8) $(GO) test -count=1 -timeout 30m -run '^TestBenchGarbage$$' -v ./internal/lab

.PHONY: bench-beat
bench-beat: ## how late heartbeats are, in their own process and as a goroutine, and what they cost (root, 6 min; BATUTA_BENCH_SECONDS=20)
	BATUTA_BENCH=1 $(GO) test -count=1 -v -timeout 30m -run TestBench ./internal/beat

.PHONY: bench-plane
bench-plane: ## what the eBPF plane costs: its program path by path, a large table, what a ring's change moves (root, 3 min)
	$(GO) test -run '^$$' -bench 'Program|Apply' -benchtime 2s ./internal/plane/ebpf
	$(GO) test -count=1 -run Disruption -v ./internal/plane/ebpf

.PHONY: bench-packets
bench-packets: ## UDP packets of 64 bytes on one processor: drop, forwarding, nftables and the eBPF plane (root, 3 min)
	BATUTA_BENCH=packets scripts/rows $(GO) test -count=1 -timeout 30m -run '^TestBenchPackets$$' ./internal/plane/ebpf -v

.PHONY: bench-stream
bench-stream: ## a TCP stream by each method of forwarding, offloads on and off, beside plain forwarding; here and on Debian's kernel (root, 4 min; ROUNDS=25)
	BATUTA_BENCH=stream scripts/rows $(GO) test -count=1 -timeout 30m -run '^TestBenchStream$$' ./internal/plane/ebpf -v
	BATUTA_BENCH=stream scripts/rows $(GO) test -count=1 -timeout 1h -run '^TestStreamCounted$$' ./internal/lab -v

.PHONY: bench-connections
bench-connections: ## short TCP connections and requests: forwarding, IPVS, nftables, the eBPF plane, HAProxy; here and on Debian's kernel (root, 7 min; WHERE=host or vm)
	BATUTA_BENCH=connections scripts/rows $(GO) test -count=1 -timeout 1h -run '^TestBenchConnections$$' ./internal/lab -v

.PHONY: bench-start
bench-start: build ## what a start waits for: the verifier, program by program, the eBPF plane, the first connection (root, 1 min)
	BATUTA_BENCH=start scripts/rows $(GO) test -count=1 -timeout 30m -run '^TestBenchStart$$' ./internal/plane/ebpf -v

.PHONY: bench-memory
bench-memory: ## memory of 262,144 connections, by the kernel's own account (root)
	BATUTA_BENCH=memory scripts/rows $(GO) test -count=1 -timeout 30m -run '^TestBenchMemory$$' ./internal/plane/ebpf -v

.PHONY: tables
tables: ## all tables of the eBPF plane in docs/performance.md, again: to bin/tables.md (root, 40 min; TABLES="bench-stream bench-memory" for some)
	scripts/tables $(or $(TABLES),bench-plane bench-packets bench-stream bench-connections bench-start bench-memory bench-program test-connections bench-icount)

.PHONY: bench-icount
bench-icount: ## instructions per packet: drop, forwarding, IPVS, nftables and the eBPF plane in one boot of Debian's kernel (root, 23 min)
	BATUTA_BENCH=icount $(GO) test -count=1 -timeout 4h -run '^TestInstructions$$' -v ./internal/lab

.PHONY: bench-program
bench-program: ## instructions of the eBPF plane's programs alone, at tc and at XDP, path by path, on Debian's kernel (root, 2 min)
	BATUTA_BENCH=program $(GO) test -count=1 -timeout 1h -run '^TestProgramInstructions$$' -v ./internal/lab

.PHONY: fuzz-plane
fuzz-plane: ## the eBPF plane against its model: PACKETS random packets (root; 10 million by default)
	BATUTA_SEED=$(or $(SEED),$(shell date +%s)) BATUTA_PACKETS=$(or $(PACKETS),10000000) $(GO) test -count=1 -timeout 12h -run '^TestAgainstOracle$$' -v ./internal/plane/ebpf

.PHONY: test-connections
test-connections: ## N open connections (default 100000) through reload, restart and updates of the eBPF plane (root, 4 GB, 3 min)
	BATUTA_CONNECTIONS=$(or $(N),100000) $(GO) test -count=1 -timeout 30m -run '^TestNothingIsLost$$' -v ./internal/plane/ebpf

.PHONY: test-plane-kernel
test-plane-kernel: ## the eBPF plane on Debian 12's kernel, in QEMU (root; its verifier alone: BATUTA_RUN=TestVerifier)
	BATUTA_KERNEL=plane $(GO) test -count=1 -timeout 55m -run '^TestPlaneOnDebian12$$' -v ./internal/lab

.PHONY: test-plane-swap
test-plane-swap: ## N open connections (default 10000) from IPVS to the eBPF plane and back, on Debian 12's kernel, in QEMU (root, 5 GB)
	BATUTA_KERNEL=swap BATUTA_CONNECTIONS=$(or $(N),10000) $(GO) test -count=1 -timeout 55m -run '^TestSwapOnDebian12$$' -v ./internal/lab

.PHONY: clean
clean: ## remove what the build wrote
	rm -rf bin
