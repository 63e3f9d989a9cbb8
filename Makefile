# Ropewalk. The first target prints what there is.

GO       ?= go
FUZZTIME ?= 30s
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null)
BIN      ?= bin
ARCHES   ?= amd64 arm64
IMAGE    ?= ropewalk:$(or $(VERSION),latest)
export CGO_ENABLED = 0
BINARIES = ROPEWALK_TEST_COREDNS=$(CURDIR)/bin/coredns ROPEWALK_TEST_ROPEWALK=$(CURDIR)/bin/ropewalk ROPEWALK_TEST_CNI=$(CURDIR)/bin/ropewalk-cni

.PHONY: help
help: ## print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/coredns, bin/ropewalk and bin/ropewalk-cni
	$(GO) build -trimpath -ldflags '-s -w -X github.com/coredns/coredns/coremain.GitCommit=$(VERSION)' -o $(BIN)/coredns ./cmd/coredns
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/ropewalk ./cmd/ropewalk
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/ropewalk-cni ./cmd/ropewalk-cni

.PHONY: programs
programs: ## build the programs for each of ARCHES (amd64 arm64), into bin/ARCH
	set -e; for arch in $(ARCHES); do GOARCH=$$arch $(MAKE) --no-print-directory build BIN=bin/$$arch; done

.PHONY: image
image: programs ## pack them into images, without a daemon: bin/image/*.tar, called IMAGE (ropewalk:VERSION)
	$(GO) run ./deploy/image -name $(IMAGE) $(ARCHES)

.PHONY: run
run: build ## serve the example cluster on 127.0.0.1:1053
	bin/coredns -conf corefile/Corefile.standalone

LAB ?= bin/lab

.PHONY: lab
lab: tools build ## the example cluster on this machine, without Kubernetes: nodes and pods are namespaces (root)
	$(GO) build -trimpath -o bin/lab ./test/lab
	@$(LAB) up corefile/example

.PHONY: lab-shell
lab-shell: ## a shell in the lab: POD=shop/web or NODE=node-a, maybe CMD='curl -s api:9000'
	@$(LAB) shell --pod "$$POD" --node "$$NODE" --command "$$CMD"

.PHONY: lab-down
lab-down: ## end the lab, and take away all of it
	@$(LAB) down

.PHONY: test
test: tools build ## run all tests
	$(BINARIES) $(GO) test ./...
	cd test/e2e && $(BINARIES) $(GO) test -count=1 -ldflags='-s -w' ./... # uncached: the programs are outside of that module

.PHONY: e2e
e2e: tools build ## try it in a real Kubernetes with two nodes on this machine (root; 4 minutes, and 10 to build Kubernetes once)
	cd test/e2e && $(GO) test -tags e2e -count=1 -v -timeout 30m ./cluster $(FLAGS)

.PHONY: race
race: ## run all tests with the race detector
	CGO_ENABLED=1 $(GO) test -race ./...

.PHONY: bench
bench: ## run the benchmarks of the hot path
	$(GO) test -run '^$$' -bench . -benchmem ./plugin/ropewalk/radix ./plugin/ropewalk/zone ./plugin/ropewalk/fastpath

.PHONY: bench-dns
bench-dns: tools build stock ## compare with CoreDNS, Knot, NSD and Unbound, into docs/benchmarks.md (root; 6 minutes)
	RUNLEVEL=1 test/tools.sh taskset:util-linux knotd:knot nsd:nsd unbound:unbound # RUNLEVEL: no daemon is started
	$(GO) build -o bin/load ./test/bench/dns/load
	$(GO) run ./test/bench/dns -write docs/benchmarks.md $(FLAGS)

.PHONY: bench-dns-scale
bench-dns-scale: tools build stock ## compare with CoreDNS on a large cluster, into docs/benchmarks.md (root; 5 minutes)
	$(GO) run ./test/bench/scale -write docs/benchmarks.md $(FLAGS)

.PHONY: bench-proxy
bench-proxy: tools build stock-proxy ## compare with kube-proxy, into docs/benchmarks.md (root; 14 minutes)
	$(GO) run ./test/bench/proxy -write docs/benchmarks.md $(FLAGS)

.PHONY: bench-cni
bench-cni: tools build stock-cni ## compare with the reference CNI plugins and flannel, into docs/benchmarks.md (root; 6 minutes)
	$(GO) run ./test/bench/cni -write docs/benchmarks.md $(FLAGS)

.PHONY: bench-agent
bench-agent: tools build ## what the agent costs a node of a large cluster at rest, into docs/benchmarks.md (root; 90 s)
	$(GO) run ./test/bench/agent -write docs/benchmarks.md $(FLAGS)

.PHONY: bench-hosts
bench-hosts: tools ## how soon a change is in the hosts file of a running container (root)
	$(GO) test -run '^$$' -bench 'Change|Alias' -benchtime 2000x ./hostsmgr ./test/container

.PHONY: stock
stock:
	GOBIN=$(CURDIR)/bin/stock $(GO) install -trimpath -ldflags '-s -w' \
		github.com/coredns/coredns@$$($(GO) list -m -f '{{.Version}}' github.com/coredns/coredns)

.PHONY: stock-proxy
stock-proxy:
	cd test/e2e && $(GO) build -trimpath -o ../../bin/stock/kube-proxy \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)" k8s.io/kubernetes/cmd/kube-proxy

.PHONY: stock-cni
stock-cni:
	GOBIN=$(CURDIR)/bin/stock $(GO) install -trimpath -ldflags '-s -w' $(foreach p,main/bridge main/ptp ipam/host-local meta/portmap meta/bandwidth,\
		github.com/containernetworking/plugins/plugins/$(p)@$$($(GO) list -m -f '{{.Version}}' github.com/containernetworking/plugins))

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (30s)
	@test/fuzz.sh $(FUZZTIME)

.PHONY: lint
lint: ## gofmt, go vet and staticcheck
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

.PHONY: tools
tools: ## install what the tests use and Go does not bring: curl, dig, dnsperf, ip, runc, nft, iptables and strace (Debian)
	@test/tools.sh curl:curl dig:bind9-dnsutils dnsperf:dnsperf ip:iproute2 runc:runc nft:nftables iptables-nft-save:iptables strace:strace
