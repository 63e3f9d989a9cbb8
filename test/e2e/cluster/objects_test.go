//go:build e2e

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/yaml"

	"github.com/ropewalk-net/ropewalk/test/e2e/containerd"
)

// shop is the namespace of what is served and who asks.
const shop = "shop"

// toolImage is the image of what is in the shop: the program tool.
const toolImage = "ropewalk.test/tool:1"

func makeTool(t *testing.T) []byte {
	t.Helper()
	path, err := exec.LookPath("tool")
	if err != nil {
		t.Fatal(err)
	}
	archive, err := containerd.Archive(toolImage, path)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// testdata reads a file of objects. Words in it are replaced.
func testdata(t *testing.T, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(replace...).Replace(string(text))
}

// apply makes the objects of a YAML text, or changes those that are there.
func (c *cluster) apply(t *testing.T, text string) {
	t.Helper()
	groups, err := restmapper.GetAPIGroupResources(c.client.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	for _, doc := range strings.Split(text, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		kind := o.GroupVersionKind()
		m, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err == nil {
			_, err = c.dynamic.Resource(m.Resource).Namespace(o.GetNamespace()).Apply(t.Context(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "e2e", Force: true})
		}
		if err != nil {
			t.Fatalf("%s %s: %v", kind.Kind, o.GetName(), err)
		}
	}
}

// deployed waits until all pods of a Deployment are of its last version and ready, and no others are left.
func (c *cluster) deployed(t *testing.T, namespace, name string) {
	t.Helper()
	soon(t, "the Deployment "+name+" is ready", func() error {
		d, err := c.client.AppsV1().Deployments(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s, want := d.Status, *d.Spec.Replicas; s.ObservedGeneration == d.Generation && s.UpdatedReplicas == want && s.ReadyReplicas == want && s.Replicas == want {
			return nil
		}
		return fmt.Errorf("%+v\n%s", d.Status, c.troubles(namespace))
	})
}

// everywhere waits until a DaemonSet has a pod of its last version on each node, and all are available.
func (c *cluster) everywhere(t *testing.T, namespace, name string) {
	t.Helper()
	soon(t, "the DaemonSet "+name+" is ready", func() error {
		d, err := c.client.AppsV1().DaemonSets(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := int32(len(c.nodes))
		if s := d.Status; s.ObservedGeneration == d.Generation && s.UpdatedNumberScheduled == want && s.NumberAvailable == want {
			return nil
		}
		return fmt.Errorf("%+v\n%s", d.Status, c.troubles(namespace))
	})
}

// troubles are the last events of a namespace, for who has waited in vain.
func (c *cluster) troubles(namespace string) string {
	events, err := c.client.CoreV1().Events(namespace).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range events.Items[max(0, len(events.Items)-30):] {
		fmt.Fprintf(&b, "%s %s: %s %s\n", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
	}
	return b.String()
}

// pods returns the ready pods of an app of the shop, by their nodes.
func (c *cluster) pods(t *testing.T, app string) []corev1.Pod {
	t.Helper()
	return c.podsOf(t, shop, "app="+app)
}

func (c *cluster) podsOf(t *testing.T, namespace, labels string) []corev1.Pod {
	t.Helper()
	list, err := c.client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: labels})
	if err != nil {
		t.Fatal(err)
	}
	out := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil || !isReady(&p) })
	slices.SortFunc(out, func(a, b corev1.Pod) int {
		return strings.Compare(a.Spec.NodeName+a.Name, b.Spec.NodeName+b.Name)
	})
	if len(out) == 0 {
		t.Fatalf("no pod of %s is ready", labels)
	}
	return out
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// pod makes one of the tool, and waits until it is ready. It goes with the test.
func (c *cluster) pod(t *testing.T, name string, change func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	grace := int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{
			Name: "tool", Image: toolImage, ImagePullPolicy: corev1.PullNever, Args: []string{"serve"},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080)}}, PeriodSeconds: 1},
		}}},
	}
	change(p)
	pods := c.client.CoreV1().Pods(shop)
	if _, err := pods.Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.gone(t, name, pods.Delete, func(ctx context.Context) error { _, err := pods.Get(ctx, name, metav1.GetOptions{}); return err })
	})
	soon(t, name+" is ready", func() (err error) {
		if p, err = pods.Get(t.Context(), name, metav1.GetOptions{}); err == nil && !isReady(p) {
			err = fmt.Errorf("%+v\n%s", p.Status.Conditions, c.troubles(shop))
		}
		return err
	})
	return p
}

// gone deletes an object and waits until it is.
func (c *cluster) gone(t *testing.T, name string, remove func(context.Context, string, metav1.DeleteOptions) error, get func(context.Context) error) {
	t.Helper()
	if err := remove(context.Background(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
		return
	}
	soon(t, name+" is gone", func() error {
		if err := get(context.Background()); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	})
}

// service makes one for the servers, at port 9000, and returns it with its addresses. It goes with the test.
func (c *cluster) service(t *testing.T, name string, change func(*corev1.ServiceSpec)) (*corev1.Service, error) {
	t.Helper()
	services := c.client.CoreV1().Services(shop)
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 9000}}}}
	if change != nil {
		change(&s.Spec)
	}
	s, err := services.Create(t.Context(), s, metav1.CreateOptions{})
	if err == nil {
		t.Cleanup(func() {
			c.gone(t, name, services.Delete, func(ctx context.Context) error { _, err := services.Get(ctx, name, metav1.GetOptions{}); return err })
		})
	}
	return s, err
}

// patch changes an object of the shop: resource is as in "deployments".
func (c *cluster) patch(t *testing.T, resource, name, patch string) {
	t.Helper()
	client := c.client.CoreV1().RESTClient()
	if resource == "deployments" {
		client = c.client.AppsV1().RESTClient()
	}
	err := client.Patch(types.MergePatchType).Namespace(shop).Resource(resource).Name(name).Body([]byte(patch)).Do(t.Context()).Error()
	if err != nil {
		t.Fatalf("%s %s: %v", resource, name, err)
	}
}

// tool runs the tool in a pod of the shop and returns what it prints.
func (c *cluster) tool(ctx context.Context, pod string, args ...string) (string, error) {
	return c.exec(ctx, shop, pod, append([]string{"/tool"}, args...)...)
}

// exec runs a command in a pod and returns what it prints, as kubectl exec does.
func (c *cluster) exec(ctx context.Context, namespace, pod string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req := c.client.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("exec").VersionedParams(
		&corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.config, "GET", req.URL().String())
	if err != nil {
		return "", err
	}
	var out, stderr bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &stderr}); err != nil {
		return "", fmt.Errorf("%s: %q: %w: %s%s", pod, command, err, &out, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
