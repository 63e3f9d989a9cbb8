// Package kubelet runs the kubelet's own code for hosts files and environment variables (k8s.io/kubernetes, pkg/kubelet), most of
// which is not exported, so that tests can hold ours to it.
package kubelet

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"unsafe"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/network/dns"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/kubernetes/pkg/volume/util/subpath"
)

//go:linkname makeMounts k8s.io/kubernetes/pkg/kubelet.makeMounts
func makeMounts(logger klog.Logger, pod *v1.Pod, podDir string, container *v1.Container, hostName, hostDomain string, podIPs []string,
	podVolumes kubecontainer.VolumeMap, hu hostutil.HostUtils, subpather subpath.Interface, expandEnvs []kubecontainer.EnvVar,
	supportsRRO bool, imageVolumes kubecontainer.ImageVolumes) ([]kubecontainer.Mount, func(), error)

//go:linkname nodeHostsFileContent k8s.io/kubernetes/pkg/kubelet.nodeHostsFileContent
func nodeHostsFileContent(hostsFilePath string, hostAliases []v1.HostAlias) ([]byte, error)

//go:linkname getServiceEnvVarMap k8s.io/kubernetes/pkg/kubelet.(*Kubelet).getServiceEnvVarMap
func getServiceEnvVarMap(kl *kubelet.Kubelet, ns string, enableServiceLinks bool) (map[string]string, error)

// ErrNoFile says that the kubelet starts the pod's containers without a hosts file.
var ErrNoFile = errors.New("the kubelet makes no hosts file")

// HostsFile does what the kubelet does when it starts a container of a pod that has the addresses of its status
// (Kubelet.GenerateRunContainerOptions, as far as it touches the file), under podDir, which is there. It returns what the
// kubelet wrote, and the file's path.
func HostsFile(pod *v1.Pod, podDir, clusterDomain string) ([]byte, string, error) {
	var kl kubelet.Kubelet
	set(&kl, "dnsConfigurer", &dns.Configurer{ClusterDomain: clusterDomain})
	hostname, domain, err := kl.GeneratePodHostNameAndDomain(klog.Logger{}, pod)
	if err != nil {
		return nil, "", err
	}
	var ips []string
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	mounts, _, err := makeMounts(klog.Logger{}, pod, podDir, new(v1.Container), hostname, domain, ips, nil, nil, nil, nil, false, nil)
	if err != nil {
		return nil, "", err
	}
	if len(mounts) == 0 {
		return nil, "", ErrNoFile
	}
	b, err := os.ReadFile(mounts[0].HostPath)
	return b, mounts[0].HostPath, err
}

// HostNetworkFile is HostsFile for a pod on the network of a node with a hosts file of its own. (HostsFile takes this machine's.)
func HostNetworkFile(pod *v1.Pod, dir string, node []byte) ([]byte, error) {
	path := filepath.Join(dir, "node-hosts")
	if err := os.WriteFile(path, node, 0o600); err != nil {
		return nil, err
	}
	return nodeHostsFileContent(path, pod.Spec.HostAliases)
}

// Environment returns the variables of services that the kubelet sets in a pod of a namespace.
func Environment(services []*v1.Service, namespace string, links bool) (map[string]string, error) {
	var kl kubelet.Kubelet
	set(&kl, "serviceLister", lister(services))
	return getServiceEnvVarMap(&kl, namespace, links)
}

type lister []*v1.Service

func (l lister) List(labels.Selector) ([]*v1.Service, error) { return l, nil }

// set sets a field of a Kubelet that is not exported.
func set(kl *kubelet.Kubelet, field string, value any) {
	f := reflect.ValueOf(kl).Elem().FieldByName(field)
	reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Set(reflect.ValueOf(value))
}
