package deploy

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

const clusterObjects = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status:
  addresses: [{type: InternalIP, address: 192.0.2.1}]
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.244.2.0/24]}
status:
  addresses: [{type: InternalIP, address: 192.0.2.2}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n1, containers: [{name: web, image: web}]}
status: {phase: Running, podIP: 10.244.1.7, podIPs: [{ip: 10.244.1.7}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  ports: [{port: 80, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.2.9], conditions: {ready: true}}]
`

// TestDNS starts the DNS as the Deployment says, and asks it at its port.
func TestDNS(t *testing.T) {
	withKubectl(t, "")
	image := pack(t)
	if !netns.Enter(t) {
		return
	}
	o := render(t, "dns-only")
	pod := o.dns.Spec.Template.Spec
	for _, s := range pod.SecurityContext.Sysctls {
		if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(s.Name, ".", "/"), []byte(s.Value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := newContainer(t, image, pod)
	c.write("/etc/coredns/Corefile", o.config(t, pod.Volumes, "Corefile"))
	c.start()
	c.probe(t, "127.0.0.1")
	for _, network := range []string{"udp", "tcp"} {
		m, _, err := (&dns.Client{Net: network}).Exchange(new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA), "127.0.0.1:53")
		if err != nil || len(m.Answer) != 1 {
			t.Errorf("%s: %v %v", network, m, err)
		}
	}
	c.asks(t, o.roles["ropewalk-dns"].Name, rightsOf(o.roles["ropewalk-dns"]))
}

// TestDNSNeedsItsSysctl: what the Deployment sets is what it takes.
func TestDNSNeedsItsSysctl(t *testing.T) {
	withKubectl(t, "")
	image := pack(t)
	if !netns.Enter(t) {
		return
	}
	o := render(t, "dns-only")
	c := newContainer(t, image, o.dns.Spec.Template.Spec)
	c.write("/etc/coredns/Corefile", o.config(t, o.dns.Spec.Template.Spec.Volumes, "Corefile"))
	c.start()
	if err := <-c.ended; err == nil || !strings.Contains(c.log.String(), "permission denied") {
		t.Errorf("%v\n%s", err, &c.log)
	}
}

// TestAgentReplaceKubeProxy, TestAgentVXLAN and TestAgentDirect start the agent as the DaemonSet says: with the volumes and the rights that it has,
// it gets all of its parts ready.
func TestAgentReplaceKubeProxy(t *testing.T) { agent(t, "replace-kube-proxy") }

func TestAgentVXLAN(t *testing.T) { agent(t, "vxlan") }

func TestAgentDirect(t *testing.T) { agent(t, "direct") }

func agent(t *testing.T, overlay string) {
	withKubectl(t, "")
	image := pack(t)
	if !netns.Enter(t) {
		return
	}
	netns.Batch(t, "", "link add eth0 type veth peer name other\naddr add 192.0.2.1/24 dev eth0\nlink set eth0 up\nlink set other up\nroute add default via 192.0.2.254\n")
	o := render(t, overlay)
	c := newAgent(t, o, image)
	c.start()
	c.probe(t, "127.0.0.1")
	c.asks(t, o.roles["ropewalk-agent"].Name, rightsOf(o.roles["ropewalk-agent"]))
	info, err := os.Stat(c.root + c.podFile())
	text, err2 := os.ReadFile(c.root + c.podFile())
	if err := errors.Join(err, err2); err != nil || !strings.Contains(string(text), "10.244.1.7\tweb") || info.Mode() != 0o644 || info.Sys().(*syscall.Stat_t).Uid != podUser {
		t.Errorf("the pod's hosts file: %v %v\n%s", err, info, text)
	}
	if overlay == "replace-kube-proxy" {
		return
	}
	for _, file := range []string{"/host/cni/net.d/10-ropewalk.conflist", "/host/cni/bin/ropewalk-cni"} {
		if _, err := os.Stat(c.root + file); err != nil {
			t.Error(err)
		}
	}
	if route := netns.Run(t, "ip", "route", "show", "10.244.2.0/24"); !strings.Contains(route, map[string]string{"vxlan": "dev rw-vxlan", "direct": "via 192.0.2.2 dev eth0"}[overlay]) {
		t.Errorf("route: %s", route)
	}
}

// TestAgentByName holds that the API server may be given by a name that the node resolves: that of what balances several.
func TestAgentByName(t *testing.T) {
	withKubectl(t, "")
	image := pack(t)
	if !netns.Enter(t) {
		return
	}
	c := newAgent(t, render(t, "replace-kube-proxy"), image)
	c.write("/etc/hosts", "127.0.0.1 example.com\n") // which the stand-in's certificate has; the kubelet mounts the node's there
	for i, e := range c.cmd.Env {
		if strings.HasPrefix(e, "KUBERNETES_SERVICE_HOST=") {
			c.cmd.Env[i] = "KUBERNETES_SERVICE_HOST=example.com"
		}
	}
	c.start()
	c.probe(t, "127.0.0.1")
}

// TestAgentCapabilities: without any one of the capabilities that it has, the agent says that it may not do something.
func TestAgentCapabilities(t *testing.T) {
	withKubectl(t, "")
	image := pack(t)
	if !netns.Enter(t) {
		return
	}
	capabilities := render(t, "replace-kube-proxy").agent.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add
	for _, without := range capabilities {
		t.Run(string(without), func(t *testing.T) {
			c := newAgent(t, render(t, "replace-kube-proxy"), image)
			c.spec.SecurityContext.Capabilities.Add = slices.DeleteFunc(slices.Clone(capabilities), func(o corev1.Capability) bool { return o == without })
			c.start()
			for deadline := time.Now().Add(patience); !regexp.MustCompile(`operation not permitted|permission denied`).MatchString(c.log.String()); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("it misses nothing")
				}
			}
		})
	}
	if len(capabilities) != 3 {
		t.Errorf("%q", capabilities)
	}
}

// podUser has the hosts file of the pod: it is one in a user namespace.
const podUser = 100000

// podFile is where the kubelet has the hosts file of the pod of clusterObjects.
func (c *container) podFile() string {
	c.t.Helper()
	var pod corev1.Pod
	resp, err := http.Get(c.api.URL() + "/api/v1/namespaces/shop/pods/web")
	if err == nil {
		err = json.NewDecoder(resp.Body).Decode(&pod)
		resp.Body.Close()
	}
	if err != nil || pod.UID == "" {
		c.t.Fatalf("%q %v", pod.UID, err)
	}
	return "/var/lib/kubelet/pods/" + string(pod.UID) + "/etc-hosts"
}

// newAgent is the agent of an overlay, on a node with a pod whose hosts file wants to be written.
func newAgent(t *testing.T, o *objects, image string) *container {
	t.Helper()
	pod := o.agent.Spec.Template.Spec
	c := newContainer(t, image, pod)
	c.write("/etc/ropewalk/agent.yaml", o.config(t, pod.Volumes, "agent.yaml"))
	c.write("/host/etc/hosts", "127.0.0.1 localhost\n")
	file := c.podFile()
	c.write(file, "")
	if err := errors.Join(os.Chmod(c.root+file, 0o600), os.Chown(c.root+file, podUser, podUser)); err != nil {
		t.Fatal(err)
	}
	return c
}

// packed names the image that a test has packed before it went into namespaces.
const packed = "ROPEWALK_TEST_IMAGE"

// pack makes the image of this machine's architecture, and returns the file in the form of `docker save`.
func pack(t *testing.T) string {
	t.Helper()
	if f := os.Getenv(packed); f != "" {
		return f
	}
	bin, out := t.TempDir(), t.TempDir()
	dir := filepath.Join(bin, runtime.GOARCH)
	err := os.Mkdir(dir, 0o755)
	for name, env := range programs {
		err = errors.Join(err, os.Symlink(os.Getenv(env), filepath.Join(dir, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
	sh(t, nil, "go", "run", "./deploy/image", "-bin", bin, "-out", out, "-name", "ropewalk:test", runtime.GOARCH)
	t.Setenv(packed, filepath.Join(out, "ropewalk-"+runtime.GOARCH+".tar"))
	return os.Getenv(packed)
}

// unpack writes the files of an image below a directory, and returns its entrypoint.
func unpack(t *testing.T, image, root string) (entrypoint []string) {
	t.Helper()
	raw, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, raw)
	var manifests []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil || len(manifests) != 1 {
		t.Fatalf("%v %v", manifests, err)
	}
	for _, l := range manifests[0].Layers {
		for name, content := range untar(t, files[l]) {
			if err := os.WriteFile(filepath.Join(root, name), content, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	var config struct {
		Config struct{ Entrypoint []string }
	}
	if err := json.Unmarshal(files[manifests[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	return config.Config.Entrypoint
}

func untar(t *testing.T, raw []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// container is a pod's only one: a process with the image for its root, and what the pod's security context leaves it.
type container struct {
	t    *testing.T
	root string
	spec corev1.Container
	pod  corev1.PodSpec
	cmd  *exec.Cmd
	api  *standin.Server
	log  program.Log
	// late are what is mounted read-only once it has been written to.
	late  []string
	ended chan error
	// before is how many requests the API server had before it started.
	before int
}

// newContainer makes the file system, with a volume wherever the pod has one, and an API server that the pod finds as pods do.
func newContainer(t *testing.T, image string, pod corev1.PodSpec) *container {
	t.Helper()
	c := &container{t: t, root: t.TempDir(), spec: pod.Containers[0], pod: pod, ended: make(chan error, 1)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("it said:\n%s", &c.log)
		}
	})
	c.mount(c.root, "", syscall.MS_BIND, "")
	t.Cleanup(func() { _ = syscall.Unmount(c.root, syscall.MNT_DETACH) }) // all that is mounted there goes, too
	entrypoint := unpack(t, image, c.root)
	if len(c.spec.Command) == 0 {
		c.spec.Command = entrypoint
	}
	for _, m := range c.spec.VolumeMounts {
		c.mount("tmpfs", m.MountPath, 0, "tmpfs")
		if m.ReadOnly {
			c.late = append(c.late, m.MountPath)
		}
	}
	c.mount("proc", "/proc", 0, "proc")
	c.write("/etc/resolv.conf", "nameserver 192.0.2.99\n")
	c.mount("tmpfs", "/var/run/secrets/kubernetes.io/serviceaccount", 0, "tmpfs")
	c.connect()
	return c
}

// mount mounts something in the container's file system.
func (c *container) mount(what, where string, flags uintptr, kind string) {
	c.t.Helper()
	if err := errors.Join(os.MkdirAll(c.root+where, 0o755), syscall.Mount(what, c.root+where, kind, flags, "")); err != nil {
		c.t.Fatalf("%s: %v", where, err)
	}
}

func (c *container) write(path, text string) {
	c.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(c.root+path), 0o755), os.WriteFile(c.root+path, []byte(text), 0o644)); err != nil {
		c.t.Fatal(err)
	}
}

// connect starts an API server, and says where it is as the kubelet does.
func (c *container) connect() {
	c.api = standin.New(c.t)
	c.api.Load([]byte(clusterObjects))
	target, _ := url.Parse(c.api.URL())
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	front := httptest.NewTLSServer(proxy)
	c.t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	for name, text := range map[string]string{"token": "x", "namespace": "kube-system", "ca.crt": string(ca)} {
		c.write("/var/run/secrets/kubernetes.io/serviceaccount/"+name, text)
	}
	u, _ := url.Parse(front.URL)
	c.cmd = &exec.Cmd{Env: []string{"NODE_NAME=n1", "KUBERNETES_SERVICE_HOST=" + u.Hostname(), "KUBERNETES_SERVICE_PORT=" + u.Port()}}
}

// start runs the container's process until the end of the test.
func (c *container) start() {
	c.t.Helper()
	security := c.spec.SecurityContext
	privileged := security.Privileged != nil && *security.Privileged
	if security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem {
		c.t.Error("the root is not read-only")
	}
	if !privileged { // as runtimes have it
		c.mount(c.root+"/proc/sys", "/proc/sys", syscall.MS_BIND, "")
		c.late = append(c.late, "/proc/sys")
	}
	for _, path := range append(c.late, "") {
		if err := syscall.Mount("", c.root+path, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
			c.t.Fatalf("%s: %v", path, err)
		}
	}
	argv := append(slices.Clone(c.spec.Command), c.spec.Args...)
	c.cmd.Path, c.cmd.Args, c.cmd.Dir = argv[0], argv, "/"
	c.cmd.Stdout, c.cmd.Stderr = &c.log, &c.log
	for _, e := range c.spec.Env {
		if e.Value != "" {
			c.cmd.Env = append(c.cmd.Env, e.Name+"="+e.Value)
		}
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root, Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{}}
	if s := c.pod.SecurityContext; s != nil && s.RunAsUser != nil {
		c.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(*s.RunAsUser), Gid: uint32(*s.RunAsGroup)}
	}
	c.before = len(c.api.Requests())
	started, gone := make(chan error), make(chan struct{})
	go func() {
		defer close(gone)
		runtime.LockOSThread() // for good: it has fewer rights than others, and the process ends with it
		var err error
		if !privileged {
			err = confine(security)
		}
		if err == nil {
			err = c.cmd.Start()
		}
		started <- err
		if err == nil {
			c.ended <- c.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it may have ended
		<-gone
	})
}

// confine takes from this thread, and so from what it starts, the capabilities that a container does not have.
func confine(s *corev1.SecurityContext) error {
	if s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
		return errors.New("it keeps rights that nobody has named")
	}
	numbers := map[corev1.Capability]uintptr{"NET_ADMIN": unix.CAP_NET_ADMIN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "FOWNER": unix.CAP_FOWNER}
	keep := map[uintptr]bool{}
	for _, name := range s.Capabilities.Add {
		n, ok := numbers[name]
		if !ok {
			return fmt.Errorf("capability %s", name)
		}
		keep[n] = true
	}
	for n := uintptr(0); n <= unix.CAP_LAST_CAP; n++ {
		if !keep[n] {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err != nil {
				return fmt.Errorf("capability %d: %w", n, err)
			}
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// probe waits until the container is ready, asked as the kubelet asks, and holds that it is alive then.
func (c *container) probe(t *testing.T, host string) {
	t.Helper()
	answer := func(p *corev1.Probe) (int, string) {
		resp, err := http.Get("http://" + net.JoinHostPort(host, fmt.Sprint(p.HTTPGet.Port.IntValue())) + p.HTTPGet.Path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		code, body := answer(c.spec.ReadinessProbe)
		if code == http.StatusOK {
			break
		}
		select {
		case err := <-c.ended:
			t.Fatalf("it has ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is not ready: %d %s", code, body)
		}
	}
	if code, body := answer(c.spec.LivenessProbe); code != http.StatusOK {
		t.Errorf("it is not alive: %d %s", code, body)
	}
}

// asks holds that what the container has asked the API server for is what its role has, and all of that.
func (c *container) asks(t *testing.T, role string, rights []right) {
	t.Helper()
	asked, has := map[string]bool{}, map[string]bool{}
	for _, r := range c.api.Requests()[c.before:] {
		path := strings.Split(strings.Trim(r.Path, "/"), "/")
		asked[path[len(path)-1]] = true
	}
	for _, r := range rights {
		has[r.resource] = true
	}
	if d := cmp.Diff(has, asked); d != "" {
		t.Errorf("%s (-may +asks):\n%s", role, d)
	}
}
