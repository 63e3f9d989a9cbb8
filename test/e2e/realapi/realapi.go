// Package realapi starts a real Kubernetes API server inside a test: kube-apiserver as Kubernetes builds it, and etcd
// under it, both in the test's process and on the loopback, with their data in the test's directory.
//
// There is nothing else: no controllers, no scheduler, no kubelet. Who needs EndpointSlices or the phase of a pod writes
// them. Tests that use the package cannot be built with -trimpath: the API server's test support looks for its files next
// to its source.
package realapi

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	apiservertesting "k8s.io/kubernetes/cmd/kube-apiserver/app/testing"
	mcs "sigs.k8s.io/mcs-api/config/crd"
	"sigs.k8s.io/yaml"

	"github.com/ropewalk-net/ropewalk/test/wait"
)

// The ranges that Services get their addresses from, the first address of which is that of the API server's own.
const (
	ServiceCIDR4 = "10.96.0.0/24"
	ServiceCIDR6 = "fd00:10:96::/112"
)

// patience is how long something may take that should happen.
const patience = time.Minute

// Start starts an API server that lets its clients do everything, and serves ServiceImports beside what it has of its
// own. It returns a kubeconfig file, which stays for as long as the test, and what that file says. The server ends with
// the test. It may be given more of kube-apiserver's flags.
func Start(t *testing.T, flags ...string) (kubeconfig string, config *rest.Config) {
	t.Helper()
	storage := storagebackend.NewDefaultConfig("/registry", nil)
	storage.Transport.ServerList = []string{startEtcd(t)}
	server, err := apiservertesting.StartTestServer(t, apiservertesting.NewDefaultTestServerOptions(), append([]string{
		"--service-cluster-ip-range=" + ServiceCIDR4 + "," + ServiceCIDR6,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		// Nobody is here to make the service accounts that pods would need.
		"--disable-admission-plugins=ServiceAccount",
		"--endpoint-reconciler-type=none",
	}, flags...), storage)
	if err != nil {
		t.Fatalf("kube-apiserver: %v", err)
	}
	t.Cleanup(server.TearDownFn)
	config = rest.CopyConfig(server.ClientConfig)
	config.QPS, config.Burst = -1, 0
	defineServiceImports(t, config)
	awaitServiceCIDR(t, config)
	return writeKubeconfig(t, config), config
}

// startEtcd starts etcd and returns where clients find it.
func startEtcd(t *testing.T) string {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(t.TempDir(), "etcd")
	// It logs its own end as an error; what goes wrong at the start comes back as one.
	cfg.LogLevel = "fatal"
	// What a test writes need not survive a power cut.
	cfg.UnsafeNoFsync = true
	client, peer := freeURL(t), freeURL(t)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatalf("etcd: %v", err)
	}
	t.Cleanup(etcd.Close)
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		t.Fatalf("etcd: %v", err)
	case <-time.After(patience):
		t.Fatal("etcd is not ready")
	}
	advance(t, etcd)
	return client.String()
}

// advance lets time go by: resource versions are etcd's revisions, and an API server that starts at the first one forgets
// nothing that a test could ask for.
func advance(t *testing.T, etcd *embed.Etcd) {
	t.Helper()
	client := v3client.New(etcd.Server)
	defer client.Close()
	for range 100 {
		if _, err := client.Put(t.Context(), "time", "goes by"); err != nil {
			t.Fatalf("etcd: %v", err)
		}
	}
}

// freeURL returns a URL with a port that was free a moment ago; etcd has to know its ports before it listens.
func freeURL(t *testing.T) url.URL {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

// defineServiceImports makes the API server serve the ServiceImports of the MCS-API (KEP-1645).
func defineServiceImports(t *testing.T, config *rest.Config) {
	t.Helper()
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(mcs.ServiceImportCRD, &crd); err != nil {
		t.Fatal(err)
	}
	client, err := apiextensions.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defs := client.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := defs.Create(t.Context(), &crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := wait.Until(patience, func() error {
		_, err := client.Discovery().ServerResourcesForGroupVersion(crd.Spec.Group + "/v1alpha1")
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// awaitServiceCIDR returns when the API server can give addresses to Services, which it does some time after it is ready.
func awaitServiceCIDR(t *testing.T, config *rest.Config) {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := wait.Until(patience, func() error {
		_, err := client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("the API server's own service: %w", err)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func writeKubeconfig(t *testing.T, config *rest.Config) string {
	t.Helper()
	c := clientcmdapi.NewConfig()
	c.Clusters["real"] = &clientcmdapi.Cluster{
		Server: config.Host, CertificateAuthorityData: config.CAData, CertificateAuthority: config.CAFile,
		TLSServerName: config.ServerName,
	}
	c.AuthInfos["real"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	c.Contexts["real"] = &clientcmdapi.Context{Cluster: "real", AuthInfo: "real"}
	c.CurrentContext = "real"
	raw, err := clientcmd.Write(*c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
