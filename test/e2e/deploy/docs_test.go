package deploy

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// had is what a cluster has before it is moved over: the DNS as kubeadm makes it, kube-proxy and CNI plugins, and a node.
const had = `
apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {k8s-app: kube-dns, kubernetes.io/cluster-service: "true", kubernetes.io/name: CoreDNS}
  annotations: {prometheus.io/port: "9153", prometheus.io/scrape: "true"}
spec:
  clusterIP: 10.96.0.10
  selector: {k8s-app: kube-dns}
  ports:
  - {name: dns, port: 53, protocol: UDP, targetPort: 53}
  - {name: dns-tcp, port: 53, protocol: TCP, targetPort: 53}
  - {name: metrics, port: 9153, protocol: TCP, targetPort: 9153}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  replicas: 2
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec: {containers: [{name: coredns, image: coredns}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-flannel}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
spec:
  selector: {matchLabels: {app: some}}
  template:
    metadata: {labels: {app: some}}
    spec: {containers: [{name: some, image: some}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system}
spec:
  selector: {matchLabels: {app: some}}
  template:
    metadata: {labels: {app: some}}
    spec: {containers: [{name: some, image: some}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kindnet, namespace: kube-system}
spec:
  selector: {matchLabels: {app: some}}
  template:
    metadata: {labels: {app: some}}
    spec: {containers: [{name: some, image: some}]}
---
apiVersion: v1
kind: Node
metadata: {name: worker-1}
`

// documents runs the commands of the documents about clusters, in their order, with the files that stand in them, against a real API server that
// has nothing. What kubelets and controllers would do is not there: rollouts are played, and see command for what is left out.
func documents(t *testing.T, client *kubernetes.Clientset) {
	play(t, client)
	t.Run("install.md", func(t *testing.T) { follow(t, "install.md") })
	t.Run("migrate.md", func(t *testing.T) {
		sh(t, []byte(had), "kubectl", "create", "-f", "-")
		ready(t, client, "worker-1")
		follow(t, "migrate.md")
	})
	t.Run("operations.md", func(t *testing.T) {
		sh(t, nil, "kubectl", "apply", "--server-side", "-k", overlays+"/vxlan")
		follow(t, "operations.md")
	})
}

// follow does what a document says.
func follow(t *testing.T, doc string) {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(filepath.Join(root(), "docs", doc))
	if err == nil {
		err = errors.Join(os.Symlink(root(), filepath.Join(dir, "ropewalk")), os.WriteFile(filepath.Join(dir, "Corefile"), []byte(".:53 {\n    ropewalk cluster.local\n}\n"), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	steps := regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$|^    ([^\n]+)$").FindAllStringSubmatch(string(text), -1)
	ran := 0
	for _, s := range steps {
		switch {
		case s[1] == "yaml":
			name := regexp.MustCompile(`^# (\S+\.yaml)\n`).FindStringSubmatch(s[2])
			if name == nil {
				t.Fatalf("a file without a name:\n%s", s[2])
			}
			if err := os.WriteFile(filepath.Join(dir, name[1]), []byte(s[2]), 0o644); err != nil {
				t.Fatal(err)
			}
		case s[1] != "":
			t.Errorf("nobody looks at %s", s[1])
		default:
			ran += command(t, dir, s[3])
		}
	}
	if ran < 2 {
		t.Errorf("%d commands", ran)
	}
}

// elsewhere are lines that another test runs: test/docs and test/nodes those for nodes, TestCopy and TestImport those of the image, and make is what
// all tests begin with.
var elsewhere = regexp.MustCompile(`^(?:ropewalk |rm -f |ip |sysctl |make image$|skopeo copy |ctr -n k8s.io images import )`)

// needs are lines that have to have more of a cluster than an API server: a kubelet, and controllers that keep revisions. What they are about
// has to be there.
var needs = regexp.MustCompile(`^kubectl -n kube-system (?:exec (\S+) -- /ropewalk status|rollout undo (\S+))$`)

// command runs a line, and returns how many that are.
func command(t *testing.T, dir, line string) int {
	t.Helper()
	if elsewhere.MatchString(line) {
		return 0
	}
	if m := needs.FindStringSubmatch(line); m != nil {
		if line = "kubectl -n kube-system get " + m[1] + m[2]; !strings.Contains(line, "/") { // a pod, which nobody has made
			return 0
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+line)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("$ %s: %v\n%s", line, err, out)
	}
	return 1
}

// ready has a node say that it is.
func ready(t *testing.T, client *kubernetes.Clientset, name string) {
	t.Helper()
	node, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		_, err = client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// play has Deployments and DaemonSets say that all is rolled out, as their controllers would.
func play(t *testing.T, client *kubernetes.Clientset) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		// Errors are of objects that have changed meanwhile, or are gone: the next round sees.
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			deployments, err := client.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
			if err != nil {
				continue
			}
			for _, d := range deployments.Items {
				if s := &d.Status; s.ObservedGeneration != d.Generation {
					s.ObservedGeneration, s.Replicas = d.Generation, *d.Spec.Replicas
					s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas = s.Replicas, s.Replicas, s.Replicas
					_, _ = client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, &d, metav1.UpdateOptions{})
				}
			}
			sets, err := client.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
			if err != nil {
				continue
			}
			for _, d := range sets.Items {
				if s := &d.Status; s.ObservedGeneration != d.Generation {
					s.ObservedGeneration, s.DesiredNumberScheduled, s.CurrentNumberScheduled = d.Generation, 1, 1
					s.UpdatedNumberScheduled, s.NumberReady, s.NumberAvailable = 1, 1, 1
					_, _ = client.AppsV1().DaemonSets(d.Namespace).UpdateStatus(ctx, &d, metav1.UpdateOptions{})
				}
			}
		}
	}()
}
