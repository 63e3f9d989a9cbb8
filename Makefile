# Ropewalk. The first target prints what there is.

GO       ?= go
FUZZTIME ?= 30s
VERSION  ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null)
BIN      ?= bin
ARCHES   ?= amd64 arm64
IMAGE    ?= ropewalk:$(or $(VERSION),latest)
export CGO_ENABLED = 0
# VERSION says which sources it is; what Go adds of git would make the bytes depend on what else is in the directory. Root may build what is another user's.
export GOFLAGS := $(strip $(shell $(GO) env GOFLAGS 2>/dev/null) -buildvcs=false)
BINARIES = ROPEWALK_TEST_COREDNS="$(CURDIR)/bin/coredns" ROPEWALK_TEST_ROPEWALK="$(CURDIR)/bin/ropewalk" ROPEWALK_TEST_CNI="$(CURDIR)/bin/ropewalk-cni" ROPEWALK_TEST_STOCK="$(CURDIR)/bin/stock"

.PHONY: help
help: ## print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: build
build: go ## build bin/coredns, bin/ropewalk and bin/ropewalk-cni
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
lab: root go lab-tools build ## the example cluster on this machine, without Kubernetes: nodes and pods are namespaces (root)
	$(GO) build -trimpath -o bin/lab ./test/lab
	@$(LAB) up corefile/example

.PHONY: lab-shell
lab-shell: root $(LAB) ## a shell in the lab: POD=shop/web or NODE=node-a, maybe CMD='curl -s api:9000'
	@$(LAB) shell --pod "$$POD" --node "$$NODE" --command "$$CMD"

.PHONY: lab-down
lab-down: root $(LAB) ## end the lab, and take away all of it
	@$(LAB) down

bin/lab:
	$(GO) build -trimpath -o bin/lab ./test/lab

.PHONY: test
test: tools build stock-cni stock-flannel ## run all tests
	$(BINARIES) $(GO) test ./...
	cd test/e2e && $(BINARIES) $(GO) test -count=1 -ldflags='-s -w' ./... # uncached: the programs are outside of that module

.PHONY: e2e
e2e: root go tools build ## try it in a real Kubernetes with two nodes on this machine (root; 4 minutes, and 10 to build Kubernetes once)
	cd test/e2e && $(GO) test -tags e2e -count=1 -v -timeout 75m ./cluster $(FLAGS)

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
bench-agent: tools build stock-proxy stock-flannel ## compare what the agent costs a node at rest with kube-proxy and flannel, into docs/benchmarks.md (root; 6 minutes)
	$(GO) run ./test/bench/agent -write docs/benchmarks.md $(FLAGS)

.PHONY: bench-hosts
bench-hosts: tools ## how soon a change is in the hosts file of a running container (root)
	$(GO) test -run '^$$' -bench 'Change|Alias' -benchtime 2000x ./hostsmgr ./test/container

.PHONY: stock
stock:
	GOBIN="$(CURDIR)/bin/stock" $(GO) install -trimpath -ldflags '-s -w' \
		github.com/coredns/coredns@$$($(GO) list -m -f '{{.Version}}' github.com/coredns/coredns)

.PHONY: stock-proxy
stock-proxy:
	cd test/e2e && $(GO) build -trimpath -o ../../bin/stock/kube-proxy \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)" k8s.io/kubernetes/cmd/kube-proxy

.PHONY: stock-cni
stock-cni:
	GOBIN="$(CURDIR)/bin/stock" $(GO) install -trimpath -ldflags '-s -w' $(foreach p,main/bridge main/ptp ipam/host-local meta/portmap meta/bandwidth,\
		github.com/containernetworking/plugins/plugins/$(p)@$$($(GO) list -m -f '{{.Version}}' github.com/containernetworking/plugins))

FLANNEL = v0.28.10

.PHONY: stock-flannel
stock-flannel: bin/stock/flanneld

# Without the backend of a cloud whose library the module proxy lacks, and the one that needs a C compiler.
bin/stock/flanneld: Makefile
	$(GO) mod download github.com/flannel-io/flannel@$(FLANNEL)
	rm -rf bin/stock/flannel.src && mkdir -p bin/stock && cp -r --no-preserve=mode $$($(GO) env GOMODCACHE)/github.com/flannel-io/flannel@$(FLANNEL) bin/stock/flannel.src
	cd bin/stock/flannel.src && sed -i '/backend\/tencentvpc"/d; /backend\/udp"/d' main.go && rm -r pkg/backend/tencentvpc pkg/backend/udp && \
		$(GO) build -trimpath -ldflags '-s -w -X github.com/flannel-io/flannel/pkg/version.Version=$(FLANNEL)' -o ../flanneld .
	rm -r bin/stock/flannel.src

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (30s)
	@test/fuzz.sh $(FUZZTIME)

.PHONY: lint
lint: ## gofmt, go vet and staticcheck
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

.PHONY: tools
tools: ## install what the tests use and Go does not bring: curl, dig, dnsperf, ip, runc, nft, iptables, skopeo, strace and sysctl (Debian)
	@test/tools.sh curl:curl dig:bind9-dnsutils dnsperf:dnsperf ip:iproute2 runc:runc nft:nftables iptables-nft-save:iptables skopeo:skopeo strace:strace sysctl:procps

.PHONY: lab-tools
lab-tools:
	@test/tools.sh nsenter:util-linux curl:curl dig:bind9-dnsutils ip:iproute2 nft:nftables

# What others need before they begin: a second's message now is better than a minute's work and then a riddle.
.PHONY: go root
go:
	@command -v $(GO) >/dev/null || { echo "there is no command $(GO) in PATH; sudo has another PATH than you: sudo env PATH=\"\$$PATH\" make ..." >&2; exit 1; }
	@$(GO) list -m >/dev/null || { echo "$$($(GO) version) cannot read go.mod; https://go.dev/dl has Go $$(sed -n 's/^go //p' go.mod)" >&2; exit 1; }

root:
	@[ "$$(id -u)" = 0 ] || { echo "this makes namespaces, which needs root: sudo env PATH=\"\$$PATH\" make $(MAKECMDGOALS)" >&2; exit 1; }
