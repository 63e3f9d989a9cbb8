package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/manifests"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
)

// renderer is what "hosts render" is told.
type renderer struct {
	file, nodeHosts, domain string
	ips                     []string
	wide                    namespaces
}

func newRender() *cobra.Command {
	var r renderer
	cmd := &cobra.Command{
		Use:   "render -f FILE [[NAMESPACE/]POD]",
		Short: "Print the hosts file of a pod",
		Long: `render prints the hosts file that a pod should have: the kubelet's bytes, with the aliases of the pod's annotation, and of
ConfigMaps in the same file, behind those of its spec.

The file is ordinary Kubernetes YAML or JSON, as "kubectl get pod -o yaml" prints it; - is standard input. Of several
pods in it, name the one that is meant. A pod that has no status.podIPs yet gets its addresses by --ip.`,
		Example: `  ropewalk hosts render -f pod.yaml
  ropewalk hosts render -f pod.yaml --ip 10.244.1.4 --ip 2001:db8::4
  ropewalk hosts render -f /etc/ropewalk/cluster/shop-web.yaml shop/web-6f7d9c4b8-4mzkt --node-hosts /etc/hosts
  cat pod.yaml | ropewalk hosts render -f -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := required(cmd, "filename", r.file, "the file with the pod, or - for standard input, as in -f pod.yaml"); err != nil {
				return err
			}
			data, err := read(r.file, cmd.InOrStdin())
			if err != nil {
				return err
			}
			text, err := r.render(data, args, func(err error) { fmt.Fprintf(cmd.ErrOrStderr(), "ropewalk: left out: %v\n", err) })
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	cmd.Flags().StringVarP(&r.file, "filename", "f", "", "file with the pod, - for standard input")
	cmd.Flags().StringVar(&r.nodeHosts, "node-hosts", "/etc/hosts", "the node's own hosts file, which pods on the node's network have")
	cmd.Flags().StringVar(&r.domain, "cluster-domain", "cluster.local", "the kubelet's clusterDomain")
	r.wide.add(cmd)
	cmd.Flags().StringSliceVar(&r.ips, "ip", nil, "an address of a pod that has none in its status; may be given for each family")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json") // fails for flags that are not there
	return cmd
}

// maxInput is what the manifests package takes of a file, in bytes.
const maxInput = 64 << 20

func read(file string, in io.Reader) ([]byte, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err == nil && len(data) > maxInput {
		err = fmt.Errorf("%s: over %d bytes", file, maxInput)
	}
	return data, err
}

// render returns the hosts file of the pod that args name, or of the only one there is. report is told of aliases that are wrong.
func (r *renderer) render(data []byte, args []string, report func(error)) ([]byte, error) {
	view, err := r.values(data)
	if err != nil {
		return nil, err
	}
	pod, err := pick(view, r.file, args)
	if err != nil {
		return nil, err
	}
	var node []byte
	if pod.Hosts.HostNetwork {
		if node, err = os.ReadFile(r.nodeHosts); err != nil {
			return nil, fmt.Errorf("the pod is on the node's network: %w; --node-hosts names another file", err)
		}
	}
	var maps []*cluster.ConfigMap
	for _, m := range view[cluster.KindConfigMap] {
		maps = append(maps, m.(*cluster.ConfigMap))
	}
	config := hostsmgr.Config{ClusterDomain: r.domain, ClusterNamespaces: r.wide.names()}
	text, err := hostsmgr.Render(config, pod, maps, node, report)
	if errors.Is(err, hostsfile.ErrNoAddress) {
		return nil, fmt.Errorf("pod %s: %w; give it one by --ip", pod.Key(), err)
	}
	return text, err
}

// values reads the objects of a file. Pods without addresses get those of --ip.
func (r *renderer) values(data []byte) (v manifests.View, err error) {
	var status corev1.PodStatus
	for _, ip := range r.ips {
		addr, err := netip.ParseAddr(ip)
		if err != nil || addr.Zone() != "" {
			return v, fmt.Errorf("--ip %q: want an address as 10.244.1.4 or 2001:db8::4", ip)
		}
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: addr.String()})
	}
	objects, err := manifests.Parse(r.file, data)
	if err != nil {
		return v, err
	}
	for i, o := range objects {
		if pod, ok := o.Value.(*corev1.Pod); ok && len(pod.Status.PodIPs) == 0 {
			pod = pod.DeepCopy()
			pod.Status.PodIPs = status.PodIPs
			objects[i].Value = pod
		}
	}
	c, err := manifests.Fill(objects, nil)
	if err != nil {
		return v, err
	}
	return manifests.Values(c, cluster.Interest{
		Kinds: cluster.KindsOf(cluster.KindPod, cluster.KindConfigMap), PodHosts: true, ConfigMapLabels: hostsfile.AliasesKey,
	})
}

// pick returns the pod that is meant.
func pick(v manifests.View, file string, args []string) (*cluster.Pod, error) {
	var names []string
	var found []*cluster.Pod
	for key, o := range v[cluster.KindPod] {
		names = append(names, key.String())
		if len(args) == 0 || args[0] == key.String() || args[0] == key.Name {
			found = append(found, o.(*cluster.Pod))
		}
	}
	slices.Sort(names)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(names) == 0:
		return nil, fmt.Errorf("%s has no pod that runs or is going to", file)
	case len(found) == 0:
		return nil, fmt.Errorf("%s has no pod %s; it has: %s", file, args[0], strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%s has %d pods, name one of them: %s", file, len(names), strings.Join(names, ", "))
}
