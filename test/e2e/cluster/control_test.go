//go:build e2e

package cluster

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ropewalk-net/ropewalk/test/wait"
)

// The addresses of the control plane, and the ranges of the cluster. Those of services are as small as they may be, so that a test can
// fill them.
const (
	control4 = "172.18.0.1"
	control6 = "fd00:172:18::1"
	server   = "https://" + control4 + ":6443"

	podCIDRs     = "10.244.0.0/16,fd00:10:244::/56"
	serviceCIDRs = "10.96.0.0/28,fd96::/124"
	apiService4  = "10.96.0.1"
	apiService6  = "fd96::1"
	dnsService4  = "10.96.0.10"
	dnsService6  = "fd96::a"
)

// cluster is one that runs.
type cluster struct {
	*pki
	config      *rest.Config
	client      *kubernetes.Clientset
	dynamic     *dynamic.DynamicClient
	api         *process
	manager     *process // kube-controller-manager
	nodes       []*node
	toolArchive []byte
}

// newCluster starts a control plane.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	if err := errors.Join(os.RemoveAll(logs), os.MkdirAll(filepath.Join(dir, "pki"), 0o700)); err != nil {
		t.Fatal(err)
	}
	c := &cluster{toolArchive: makeTool(t), pki: newPKI(t, filepath.Join(dir, "pki"))}
	c.issue(t, "apiserver", "kube-apiserver", nil, control4, control6, apiService4, apiService6, "127.0.0.1",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	for name, groups := range map[string][]string{"admin": {"system:masters"}, "kube-controller-manager": nil, "kube-scheduler": nil} {
		c.issue(t, name, "system:"+name, groups)
		c.kubeconfig(t, c.kubeconfigOf(name), name)
	}
	start(t, 0, "etcd", "etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=default=http://127.0.0.1:2380")
	var err error
	if c.config, err = clientcmd.BuildConfigFromFlags("", c.kubeconfigOf("admin")); err == nil {
		c.config.QPS = -1
		c.client, err = kubernetes.NewForConfig(c.config)
	}
	if err == nil {
		c.dynamic, err = dynamic.NewForConfig(c.config)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.startAPI(t)
	c.startManager(t)
	start(t, 0, "kube-scheduler", "kube-scheduler", c.clientOf("kube-scheduler")...)
	soon(t, "the API server has made its own objects", func() error {
		_, err := c.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err == nil {
			_, err = c.client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
		}
		return err
	})
	return c
}

func (c *cluster) kubeconfigOf(name string) string { return c.file(name + ".conf") }

// clientOf returns the arguments of a program of the control plane, by which it finds the API server.
func (c *cluster) clientOf(name string) []string {
	f := c.kubeconfigOf(name)
	return []string{"--kubeconfig=" + f, "--authentication-kubeconfig=" + f, "--authorization-kubeconfig=" + f, "--bind-address=127.0.0.1", "--leader-elect=false"}
}

func (c *cluster) startManager(t *testing.T) {
	t.Helper()
	c.manager = start(t, 0, "kube-controller-manager", "kube-controller-manager", append(c.clientOf("kube-controller-manager"),
		"--allocate-node-cidrs", "--cluster-cidr="+podCIDRs, "--service-cluster-ip-range="+serviceCIDRs, "--use-service-account-credentials",
		"--service-account-private-key-file="+c.file("sa.key"), "--root-ca-file="+c.file("ca.crt"))...)
}

// startAPI starts the API server and waits until it is ready.
func (c *cluster) startAPI(t *testing.T) {
	t.Helper()
	c.api = start(t, 0, "kube-apiserver", "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--advertise-address="+control4,
		"--tls-cert-file="+c.file("apiserver.crt"), "--tls-private-key-file="+c.file("apiserver.key"), "--client-ca-file="+c.file("ca.crt"),
		"--kubelet-client-certificate="+c.file("admin.crt"), "--kubelet-client-key="+c.file("admin.key"), "--kubelet-certificate-authority="+c.file("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP", "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.file("sa.pub"), "--service-account-signing-key-file="+c.file("sa.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--service-cluster-ip-range="+serviceCIDRs,
		"--allow-privileged",   // as kubeadm has it
		"--request-timeout=5s") // which is how long it waits for others when it is told to end
	c.awaitAPI(t)
}

func (c *cluster) awaitAPI(t *testing.T) {
	t.Helper()
	soon(t, "the API server is ready", func() error {
		if err := c.api.gone(); err != nil {
			return &wait.Fatal{Err: err}
		}
		code := 0
		body, err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).StatusCode(&code).Raw()
		if code != http.StatusOK {
			return fmt.Errorf("%d %s: %w", code, body, err)
		}
		return nil
	})
}
