package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// program is one that is measured, alone on a node that is fresh.
type program struct {
	name string
	// command returns what starts it; what it needs is in dir by then, and kubeconfig leads to the API server.
	command func(dir, kubeconfig string) (*exec.Cmd, error)
	// missing says what the kernel lacks of what the program is for.
	missing func() error
}

// ropewalkAgent has all of its parts on, and its defaults but for directories and, as kube-proxy, the range of pods.
var ropewalkAgent = program{
	name: "ropewalk agent",
	command: func(dir, kubeconfig string) (*exec.Cmd, error) {
		installed, err := filepath.Abs(*plugin)
		if err != nil {
			return nil, err
		}
		for i := range *pods { // what the kubelet makes
			pod := filepath.Join(dir, "kubelet/pods", uid(i))
			if err := errors.Join(os.MkdirAll(pod, 0o755), os.WriteFile(filepath.Join(pod, "etc-hosts"), nil, 0o644)); err != nil {
				return nil, err
			}
		}
		config, err := put(dir, "agent.yaml", fmt.Sprintf("apiVersion: ropewalk.dev/v1alpha1\nkind: AgentConfiguration\nhosts: {kubelet-dir: %[1]s/kubelet}\n"+
			"routes: {conf-dir: %[1]s/net.d, data-dir: %[1]s/data}\ncni: {plugin: %[2]s, bin-dir: %[1]s/bin}\nproxy: {cluster-cidr: [%[3]s, %[4]q]}\n", dir, installed, clusterCIDR4, clusterCIDR6))
		return exec.Command(*ropewalk, "agent", "--node-name", nodeName(0), "--kubeconfig", kubeconfig, "--config", config), err
	},
	missing: func() error {
		if err := get("http://127.0.0.1:9150/readyz"); err != nil { // which hosts files are among, too
			return err
		}
		return errors.Join(frontends("ropewalk", "frontends"), routes())
	},
}

// kubeProxy is upstream's, in its nftables mode, with its defaults but that it leaves the sysctls of conntrack alone.
var kubeProxy = program{
	name: "kube-proxy",
	command: func(_, kubeconfig string) (*exec.Cmd, error) {
		return exec.Command(filepath.Join(*stock, "kube-proxy"), "--proxy-mode", "nftables", "--hostname-override", nodeName(0), "--kubeconfig", kubeconfig, "--cluster-cidr", clusterCIDR4+","+clusterCIDR6,
			"--conntrack-max-per-core", "0", "--conntrack-min", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"), nil
	},
	missing: func() error { return frontends("kube-proxy", "service-ips") },
}

// flanneld is upstream's, with the arguments of its manifest for Kubernetes and the configuration there, but for the ranges and IPv6.
func flanneld(name string, nftables bool) program {
	return program{
		name: name,
		command: func(dir, kubeconfig string) (*exec.Cmd, error) {
			config, err := put(dir, "net-conf.json", fmt.Sprintf(`{"Network": %q, "EnableIPv6": true, "IPv6Network": %q, "EnableNFTables": %t, "Backend": {"Type": "vxlan"}}`,
				clusterCIDR4, clusterCIDR6, nftables))
			cmd := exec.Command(filepath.Join(*stock, "flanneld"), "--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081", "--kubeconfig-file", kubeconfig,
				"--net-config-path", config, "--subnet-file", filepath.Join(dir, "subnet.env"))
			cmd.Env = append(os.Environ(), "NODE_NAME="+nodeName(0), "EVENT_QUEUE_DEPTH=5000")
			return cmd, err
		},
		missing: routes,
	}
}

// put writes a file, and returns its path.
func put(dir, name, text string) (string, error) {
	file := filepath.Join(dir, name)
	return file, os.WriteFile(file, []byte(text), 0o644)
}

// frontends says whether a map of nftables has all services. All are written in one transaction with the table.
func frontends(table, name string) error {
	out, err := exec.Command("nft", "list", "map", "ip", table, name).Output()
	if err != nil {
		return fmt.Errorf("nft list map ip %s %s: %w", table, name, err)
	}
	if n := strings.Count(string(out), " . 80 : "); n < *services {
		return fmt.Errorf("%d services of %d", n, *services)
	}
	return nil
}

// routes says whether there is one for each other node and family.
func routes() error {
	for family, length := range map[int]int{unix.AF_INET: 24, unix.AF_INET6: 64} {
		all, err := netlink.RouteList(nil, family)
		if err != nil {
			return err
		}
		n := 0
		for _, r := range all {
			if r.Dst == nil || r.Gw == nil {
				continue
			}
			if ones, _ := r.Dst.Mask.Size(); ones == length {
				n++
			}
		}
		if n < *nodes-1 {
			return fmt.Errorf("%d routes for %d other nodes", n, *nodes-1)
		}
	}
	return nil
}

// get asks an HTTP server of the calling thread's namespace, which package net/http by itself would not.
func get(url string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", req.URL.Host)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := req.Write(c); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(resp.Body)
		return errors.Join(fmt.Errorf("%s", body), err)
	}
	return nil
}
