package deploy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
	"github.com/ropewalk-net/ropewalk/cni/routes"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
	"github.com/ropewalk-net/ropewalk/proxy"
	"github.com/ropewalk-net/ropewalk/test/e2e/realapi"
)

// patience is how long something may take that should happen.
const patience = 30 * time.Second

// TestAPIServer has a real API server take each overlay, follows the documents, and then holds the rights of the DNS and of the agent to
// those that they need. Servers that stream listings ask for the right to watch alone (KEP-3157); this one does not stream them, as older ones.
func TestAPIServer(t *testing.T) {
	kubeconfig, config := realapi.Start(t, "--allow-privileged", "--authorization-mode=RBAC", "--feature-gates=WatchList=false")
	withKubectl(t, kubeconfig)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, overlay := range all(t) {
		t.Run(overlay, func(t *testing.T) { accepted(t, overlay) })
	}
	documents(t, client)
	sh(t, nil, "kubectl", "apply", "--server-side", "-k", overlays+"/vxlan")
	agent, _, err := cluster.Share(cluster.Consumer{Interest: hostsmgr.Interest("n")}, cluster.Consumer{Interest: proxy.Interest("n")}, cluster.Consumer{Interest: routes.Interest()})
	if err != nil {
		t.Fatal(err)
	}
	for account, interest := range map[string]cluster.Interest{
		"ropewalk-agent": agent,
		"ropewalk-dns":   {Kinds: (&zone.Options{}).Interest()},
	} {
		t.Run(account, func(t *testing.T) { minimal(t, client, kubeconfig, account, interest) })
	}
}

// accepted holds that the API server takes all of an overlay, as it takes it from kubectl apply, and refuses what is misspelt.
func accepted(t *testing.T, overlay string) {
	rendered := sh(t, nil, "kubectl", "kustomize", filepath.Join(overlays, overlay))
	for _, how := range [][]string{{"--server-side"}, nil} {
		args := append([]string{"apply", "--dry-run=server", "-f", "-"}, how...)
		out := sh(t, rendered, "kubectl", args...)
		if took, want := bytes.Count(out, []byte("(server dry run)")), len(decode(t, rendered).all); took != want {
			t.Errorf("%d objects of %d were taken:\n%s", took, want, out)
		}
	}
	wrong := regexp.MustCompile(`(?m)^( +)minReadySeconds:`).ReplaceAll(rendered, []byte("${1}minReadySecond:"))
	if _, err := try(wrong, "kubectl", "apply", "--dry-run=server", "--server-side", "-f", "-"); err == nil || !strings.Contains(err.Error(), "minReadySecond") {
		t.Errorf("a field that there is none of: %v", err)
	}
}

// right is one thing that a role allows.
type right struct{ group, resource, verb string }

func rightsOf(role *rbacv1.ClusterRole) (out []right) {
	for _, r := range role.Rules {
		for _, g := range r.APIGroups {
			for _, res := range r.Resources {
				for _, v := range r.Verbs {
					out = append(out, right{g, res, v})
				}
			}
		}
	}
	return out
}

func rulesOf(rights []right) (out []rbacv1.PolicyRule) {
	for _, r := range rights {
		out = append(out, rbacv1.PolicyRule{APIGroups: []string{r.group}, Resources: []string{r.resource}, Verbs: []string{r.verb}})
	}
	return out
}

// kindOf are the kinds that the API calls by these names.
var kindOf = map[string]cluster.Kind{
	"configmaps": cluster.KindConfigMap, "endpointslices": cluster.KindSlice, "namespaces": cluster.KindNamespace, "nodes": cluster.KindNode,
	"pods": cluster.KindPod, "services": cluster.KindService, "servicecidrs": cluster.KindServiceCIDR,
}

// minimal holds that with its role an account reads all that interest names, and with each right taken from it not all.
func minimal(t *testing.T, client *kubernetes.Clientset, kubeconfig, account string, interest cluster.Interest) {
	as := impersonate(t, kubeconfig, "system:serviceaccount:kube-system:"+account)
	roles := client.RbacV1().ClusterRoles()
	role, err := roles.Get(t.Context(), account, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rights := rightsOf(role)
	if len(rights) < 6 {
		t.Fatalf("rights are %v", rights)
	}
	for _, r := range rights {
		if err := allowed(t, client, account, r, true); err != nil {
			t.Fatal(err)
		}
	}
	if missing := reads(t, as, interest, 0, func() { sh(t, fmt.Appendf(nil, another, account), "kubectl", "create", "-f", "-") }); len(missing) != 0 {
		t.Errorf("with all rights: %v", missing)
	}
	for _, r := range rights {
		kind, ok := kindOf[r.resource]
		if !ok || !interest.Kinds.Has(kind) {
			t.Errorf("nobody needs %v", r)
			continue
		}
		role.Rules = rulesOf(slices.DeleteFunc(slices.Clone(rights), func(o right) bool { return o == r }))
		if role, err = roles.Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := allowed(t, client, account, r, false); err != nil {
			t.Fatal(err)
		}
		if missing := reads(t, as, interest, cluster.KindsOf(kind), nil); len(missing) != 1 || missing[kind] == nil {
			t.Errorf("without %v nothing fails, or something else: %v", r, missing)
		}
		role.Rules = rulesOf(rights)
		if role, err = roles.Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := allowed(t, client, account, r, true); err != nil {
			t.Fatal(err)
		}
	}
}

// allowed returns when the API server knows that the account has the right, or has it not: roles reach its authorizer by a watch.
func allowed(t *testing.T, client *kubernetes.Clientset, account string, r right, want bool) error {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:kube-system:" + account,
		Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: r.group, Resource: r.resource, Verb: r.verb},
	}}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		answer, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
		switch {
		case err != nil:
			return err
		case answer.Status.Allowed == want:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s may %v: %v", account, r, !want)
		}
	}
}

// impersonate returns a kubeconfig of somebody else.
func impersonate(t *testing.T, kubeconfig, user string) string {
	t.Helper()
	c, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range c.AuthInfos {
		a.Impersonate = user
		a.ImpersonateGroups = []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}
	}
	raw, err := clientcmd.Write(*c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "as")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// another is one more object of each kind.
const another = `
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Node
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: default}
spec: {nodeName: "n", containers: [{name: a, image: a}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: %[1]s, namespace: default, labels: {ropewalk.dev/host-aliases: namespace}}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: default}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.9]}]
ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: %[1]s}
spec: {cidrs: [10.97.0.0/24]}
`

// reads returns what an account may not, of what interest names. It returns when all is listed but what is denied, and that has failed: it may
// be listed before its watch is forbidden. Then it waits for a change of each kind, if it is given one.
func reads(t *testing.T, kubeconfig string, interest cluster.Interest, denied cluster.Kinds, change func()) map[cluster.Kind]error {
	t.Helper()
	w := &witness{missing: map[cluster.Kind]error{}, kick: make(chan struct{}, 1)}
	source, err := apiserver.New(apiserver.Config{Kubeconfig: kubeconfig, Log: slog.New(slog.DiscardHandler), OnError: w.failed})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, interest, w) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	wait := func(what string, good func() bool) {
		for {
			w.mu.Lock()
			now := good()
			w.mu.Unlock()
			if now {
				return
			}
			select {
			case <-w.kick:
			case <-ctx.Done():
				t.Fatalf("not all kinds have been %s: listed %b, changed %b of %b, missing %v", what, w.listed, w.changed, interest.Kinds, w.missing)
			}
		}
	}
	wait("listed", func() bool {
		for k := range w.missing {
			denied &^= cluster.KindsOf(k)
		}
		return denied == 0 && interest.Kinds&^w.listed&^w.denied == 0
	})
	if change != nil {
		change()
		wait("followed", func() bool { return interest.Kinds&^w.changed == 0 })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.missing)
}

// witness notes what a source tells.
type witness struct {
	mu      sync.Mutex
	missing map[cluster.Kind]error // that the API server forbids
	// denied are the kinds of missing, listed those that have been, and changed those of which something was heard since.
	denied, listed, changed cluster.Kinds
	kick                    chan struct{}
}

func (w *witness) note(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *witness) failed(k cluster.Kind, err error) {
	w.note(func() {
		if apierrors.IsForbidden(err) {
			w.missing[k] = err
			w.denied |= cluster.KindsOf(k)
		}
	})
}

// Apply implements cluster.Sink.
func (w *witness) Apply(c cluster.Change) {
	kind := cluster.KindsOf(c.Kind)
	w.note(func() {
		switch {
		case c.Op == cluster.Synced:
			w.listed |= kind
		case w.listed&kind != 0:
			w.changed |= kind
		}
	})
}
