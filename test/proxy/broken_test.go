package proxy

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestBroken holds that what the API would refuse, and what others of the cluster have put there in error, is left out, told and
// counted, and that the rest is served.
func TestBroken(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 3)
	r.put(service("web"), "pod0")
	r.start()
	r.ready()
	fine := probe{from: "pod1 outside", to: everywhere, want: "pod0"}
	other := func(name, ip string, change func(*corev1.Service)) *corev1.Service {
		return service(name, func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = ip, []string{ip}
			s.Spec.IPFamilies = s.Spec.IPFamilies[:1]
			single := corev1.IPFamilyPolicySingleStack
			s.Spec.IPFamilyPolicy = &single
			s.Spec.ExternalIPs, s.Status = nil, corev1.ServiceStatus{}
			s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 0, 0
			change(s)
		})
	}
	for name, put := range map[string]func(){
		"a service at another's ClusterIP": func() { r.put(other("z", "10.96.0.10", func(*corev1.Service) {}), "pod1") },
		"another's ClusterIP as an external address": func() {
			r.put(other("a", "10.96.0.20", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"10.96.0.10", "fd00:96::10"} }), "pod1")
		},
		"another's node port": func() {
			r.put(other("z", "10.96.0.21", func(s *corev1.Service) { s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = nodePort, nodePort }), "pod1")
		},
		"an address that is none": func() { r.put(other("b", "10.96.0.300", func(*corev1.Service) {}), "pod1") },
		"port 0":                  func() { r.put(other("c", "10.96.0.22", func(s *corev1.Service) { s.Spec.Ports[0].Port = 0 }), "pod1") },
		"two slices with the same endpoints": func() {
			for _, e := range endpoints("web", 8080, "pod0", "pod0") {
				e.Name += "-again"
				r.api.Apply(e)
			}
			r.settle()
		},
		"a slice of another family than it says": func() {
			e := endpoints("web", 8080, "pod1")
			e[0].Name, e[0].AddressType = "wrong", discoveryv1.AddressTypeIPv6
			r.api.Apply(e[0])
			r.settle()
		},
		"endpoints without addresses, with names for addresses, with ports of 0 and 70000": func() {
			e := endpoints("web", 8080, "pod1")[0]
			e.Name, e.Endpoints[0].Addresses = "odd", nil
			e.Endpoints = append(e.Endpoints, *e.Endpoints[0].DeepCopy(), *e.Endpoints[0].DeepCopy())
			e.Endpoints[1].Addresses, e.Endpoints[2].Addresses = []string{"localhost"}, []string{"127.0.0.1", "x"}
			zero, large := int32(0), int32(70000)
			for _, p := range []*int32{&zero, &large} {
				q := *e.Ports[0].DeepCopy()
				q.Port = p
				e.Ports = append(e.Ports, q)
			}
			e.Endpoints = e.Endpoints[:2]
			r.api.Apply(e)
			r.settle()
		},
	} {
		t.Run(name, func(t *testing.T) {
			put()
			(&rig{T: t}).see(fine)
		})
	}
	// 10,001 endpoints in one slice, where the API takes 1,000: what can be served is.
	t.Run("10,001 endpoints", func(t *testing.T) {
		e := endpoints("many", 8080, "pod2")[0]
		for i := range 10000 {
			x := *e.Endpoints[0].DeepCopy()
			x.Addresses[0] = fmt.Sprintf("10.250.%d.%d", i>>8, i&255)
			unready := false
			x.Conditions.Ready = &unready
			e.Endpoints = append(e.Endpoints, x)
		}
		r.api.Apply(other("many", "10.96.0.30", func(*corev1.Service) {}), e)
		(&rig{T: t}).see(fine, probe{from: "pod1 outside", to: "10.96.0.30:80", want: "pod2"})
	})
	log := r.log.String()
	for _, want := range []string{"10.96.0.300", "two services want the same address and port"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not tell of %s", want)
		}
	}
	_, metrics := get("http://127.0.0.1:10249/metrics")
	for _, want := range []string{`ropewalk_source_errors_total{kind="Service"}`, `ropewalk_source_errors_total{kind="EndpointSlice"}`, "ropewalk_proxy_transaction_failures_total 0\n"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	if strings.Contains(metrics, "ropewalk_proxy_rivals_total 0\n") {
		t.Error("rivals are not counted")
	}
}
