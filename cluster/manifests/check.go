package manifests

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
)

// finding is a field that an API server would refuse, and why.
type finding struct{ field, problem string }

func found(field, format string, args ...any) *finding {
	return &finding{field, fmt.Sprintf(format, args...)}
}

// first returns the first finding of those that there are.
func first(fs ...*finding) *finding {
	for _, f := range fs {
		if f != nil {
			return f
		}
	}
	return nil
}

// check returns what is wrong with v by itself. It checks what ends up in names and addresses, as the API server does,
// and leaves alone what nothing here reads.
func check(v metav1.Object) *finding {
	if f := checkMeta(v); f != nil {
		return f
	}
	switch v := v.(type) {
	case *corev1.Service:
		return checkService(v)
	case *discoveryv1.EndpointSlice:
		return checkSlice(v)
	case *endpoints:
		return checkEndpoints(v)
	case *corev1.Pod:
		return checkPod(v)
	case *corev1.Node:
		return checkNode(v)
	case *networkingv1.ServiceCIDR:
		return checkServiceCIDR(v)
	case *mcsv1alpha1.ServiceImport:
		return checkImport(v)
	case *corev1.ConfigMap:
		return checkConfigMap(v)
	}
	return nil
}

func checkMeta(v metav1.Object) *finding {
	if v.GetName() == "" {
		if v.GetGenerateName() != "" {
			return found("metadata.name", "missing; generateName needs an API server, write a name")
		}
		return found("metadata.name", "missing; every object needs one")
	}
	name := validation.IsDNS1123Subdomain
	switch v.(type) {
	case *corev1.Service, *corev1.Namespace, *mcsv1alpha1.ServiceImport:
		name = validation.IsDNS1123Label
	}
	return first(
		checkName("metadata.name", v.GetName(), name),
		checkOptional("metadata.namespace", v.GetNamespace(), checkLabel),
	)
}

// checkName reports what is wrong with s by one of the apimachinery's rules, whose messages say what would be right.
func checkName(field, s string, rule func(string) []string) *finding {
	if problems := rule(s); len(problems) > 0 {
		return found(field, "%q: %s", s, strings.Join(problems, "; "))
	}
	return nil
}

func checkLabel(field, s string) *finding { return checkName(field, s, validation.IsDNS1123Label) }

func checkOptional(field, s string, rule func(field, s string) *finding) *finding {
	if s == "" {
		return nil
	}
	return rule(field, s)
}

func checkOneOf(field, s string, allowed ...string) *finding {
	if slices.Contains(allowed, s) {
		return nil
	}
	words := slices.DeleteFunc(allowed, func(s string) bool { return s == "" })
	return found(field, "%q is none of %s", s, strings.Join(words, ", "))
}

func checkAddr(field, s string) *finding {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return found(field, "%q is not an IP address; want one like 10.96.0.10 or fd00:10:96::a", s)
	case a.Zone() != "":
		return found(field, "%q has a zone; want the address without it", s)
	case a.Is4In6():
		return found(field, "%q is an IPv4 address in IPv6 clothes; write %s", s, a.Unmap())
	}
	return nil
}

func checkPrefix(field, s string) *finding {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return found(field, "%q is not an address range; want one like 10.96.0.0/12 or fd00:10:96::/112", s)
	}
	return nil
}

func checkPrefixes(field string, ss []string) *finding {
	for i, s := range ss {
		if f := checkPrefix(fmt.Sprintf("%s[%d]", field, i), s); f != nil {
			return f
		}
	}
	return nil
}

func checkProtocol(field string, p corev1.Protocol) *finding {
	return checkOneOf(field, string(p), "", string(corev1.ProtocolTCP), string(corev1.ProtocolUDP), string(corev1.ProtocolSCTP))
}

func checkPort(field string, n int32) *finding {
	if n < 1 || n > 65535 {
		return found(field, "%d is not a port; want 1 to 65535", n)
	}
	return nil
}

func checkService(s *corev1.Service) *finding {
	const external = string(corev1.ServiceTypeExternalName)
	if f := checkOneOf("spec.type", string(s.Spec.Type), "", string(corev1.ServiceTypeClusterIP), string(corev1.ServiceTypeNodePort),
		string(corev1.ServiceTypeLoadBalancer), external); f != nil {
		return f
	}
	if string(s.Spec.Type) == external {
		if s.Spec.ExternalName == "" {
			return found("spec.externalName", "missing; a service of type ExternalName needs a name such as db.example.com")
		}
		return checkName("spec.externalName", strings.TrimSuffix(s.Spec.ExternalName, "."), validation.IsDNS1123Subdomain)
	}
	return first(checkFamilies(s), checkClusterIPs(s), checkServicePorts(s), checkExposure(s))
}

func checkFamilies(s *corev1.Service) *finding {
	if p := s.Spec.IPFamilyPolicy; p != nil {
		if f := checkOneOf("spec.ipFamilyPolicy", string(*p), string(corev1.IPFamilyPolicySingleStack),
			string(corev1.IPFamilyPolicyPreferDualStack), string(corev1.IPFamilyPolicyRequireDualStack)); f != nil {
			return f
		}
	}
	for i, fam := range s.Spec.IPFamilies {
		field := fmt.Sprintf("spec.ipFamilies[%d]", i)
		if f := checkOneOf(field, string(fam), string(corev1.IPv4Protocol), string(corev1.IPv6Protocol)); f != nil {
			return f
		}
		if slices.Contains(s.Spec.IPFamilies[:i], fam) {
			return found(field, "%s is there twice; want each family once", fam)
		}
	}
	if len(s.Spec.IPFamilies) > 1 && singleStack(s) {
		return found("spec.ipFamilies", "two families, but ipFamilyPolicy is SingleStack; want PreferDualStack or RequireDualStack, or one family")
	}
	return nil
}

func singleStack(s *corev1.Service) bool {
	return s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
}

func checkClusterIPs(s *corev1.Service) *finding {
	ip, ips := s.Spec.ClusterIP, s.Spec.ClusterIPs
	if ip != "" && len(ips) > 0 && ip != ips[0] {
		return found("spec.clusterIP", "%q is not the first of clusterIPs, %q; write one of the two, or the same", ip, ips[0])
	}
	field := "spec.clusterIP"
	if len(ips) == 0 && ip != "" {
		ips = []string{ip}
	} else {
		field = "spec.clusterIPs"
	}
	if len(ips) > 2 {
		return found(field, "%d addresses; want at most one of each family", len(ips))
	}
	for i, s2 := range ips {
		at := field
		if field == "spec.clusterIPs" {
			at = fmt.Sprintf("%s[%d]", field, i)
		}
		if s2 == corev1.ClusterIPNone {
			if len(ips) > 1 {
				return found(at, `"None" beside an address; want "None" alone or addresses`)
			}
			return nil
		}
		if f := checkAddr(at, s2); f != nil {
			return f
		}
		if i == 1 && familyOf(s2) == familyOf(ips[0]) {
			return found(at, "%s is %s like the first; want at most one of each family", s2, familyOf(s2))
		}
		if i < len(s.Spec.IPFamilies) && s.Spec.IPFamilies[i] != familyOf(s2) {
			return found(at, "%s is not %s, as ipFamilies[%d] says", s2, s.Spec.IPFamilies[i], i)
		}
	}
	if len(ips) == 2 && singleStack(s) {
		return found(field, "two addresses, but ipFamilyPolicy is SingleStack; want PreferDualStack or RequireDualStack, or one address")
	}
	return nil
}

// familyOf returns the family of an address that has been checked.
func familyOf(addr string) corev1.IPFamily {
	if strings.Contains(addr, ":") {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func checkServicePorts(s *corev1.Service) *finding {
	names := map[string]bool{}
	for i, p := range s.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if p.Name == "" && len(s.Spec.Ports) > 1 {
			return found(at+".name", "missing; a service with several ports names each")
		}
		if names[p.Name] {
			return found(at+".name", "%q is the name of another port, too; want each name once", p.Name)
		}
		names[p.Name] = true
		if f := first(checkOptional(at+".name", p.Name, checkLabel), checkProtocol(at+".protocol", p.Protocol), checkPort(at+".port", p.Port)); f != nil {
			return f
		}
		if f := checkTargetPort(at+".targetPort", p.TargetPort); f != nil {
			return f
		}
	}
	return nil
}

func checkTargetPort(field string, p intstr.IntOrString) *finding {
	switch {
	case p.Type == intstr.String:
		return checkOptional(field, p.StrVal, func(field, s string) *finding { return checkName(field, s, validation.IsValidPortName) })
	case p.IntVal != 0:
		return checkPort(field, p.IntVal)
	}
	return nil
}

// maxEndpoints is how many endpoints the API takes in a slice.
const maxEndpoints = 1000

func checkSlice(s *discoveryv1.EndpointSlice) *finding {
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil // names are not addresses, and nothing reads them
	}
	if f := checkOneOf("addressType", string(s.AddressType), string(discoveryv1.AddressTypeIPv4), string(discoveryv1.AddressTypeIPv6),
		string(discoveryv1.AddressTypeFQDN)); f != nil {
		return f
	}
	for i, p := range s.Ports {
		at := fmt.Sprintf("ports[%d]", i)
		if f := checkSlicePort(at, p); f != nil {
			return f
		}
	}
	if n := len(s.Endpoints); n > maxEndpoints {
		return found("endpoints", "%d; want at most %d, and more in slices of their own", n, maxEndpoints)
	}
	for i, e := range s.Endpoints {
		at := fmt.Sprintf("endpoints[%d]", i)
		if f := checkHints(at+".hints", e.Hints); f != nil {
			return f
		}
		if e.Hostname != nil {
			if f := checkOptional(at+".hostname", *e.Hostname, checkLabel); f != nil {
				return f
			}
		}
		for j, a := range e.Addresses {
			field := fmt.Sprintf("%s.addresses[%d]", at, j)
			if f := checkAddr(field, a); f != nil {
				return f
			}
			if string(familyOf(a)) != string(s.AddressType) {
				return found(field, "%s is not %s, the slice's addressType; want a slice for each family", a, s.AddressType)
			}
		}
	}
	return nil
}

func checkSlicePort(at string, p discoveryv1.EndpointPort) *finding {
	if p.Name != nil {
		if f := checkOptional(at+".name", *p.Name, checkLabel); f != nil {
			return f
		}
	}
	if p.Protocol != nil {
		if f := checkProtocol(at+".protocol", *p.Protocol); f != nil {
			return f
		}
	}
	if p.Port != nil {
		return checkPort(at+".port", *p.Port)
	}
	return nil
}

func checkEndpoints(e *endpoints) *finding {
	for i, s := range e.Subsets {
		at := fmt.Sprintf("subsets[%d]", i)
		for j, a := range s.Addresses {
			if f := checkEndpointsAddress(fmt.Sprintf("%s.addresses[%d]", at, j), a.IP, a.Hostname); f != nil {
				return f
			}
		}
		for j, a := range s.NotReadyAddresses {
			if f := checkEndpointsAddress(fmt.Sprintf("%s.notReadyAddresses[%d]", at, j), a.IP, a.Hostname); f != nil {
				return f
			}
		}
		for j, p := range s.Ports {
			at := fmt.Sprintf("%s.ports[%d]", at, j)
			if f := first(checkOptional(at+".name", p.Name, checkLabel), checkProtocol(at+".protocol", p.Protocol), checkPort(at+".port", p.Port)); f != nil {
				return f
			}
		}
	}
	return nil
}

func checkEndpointsAddress(at, ip, hostname string) *finding {
	return first(checkAddr(at+".ip", ip), checkOptional(at+".hostname", hostname, checkLabel))
}

func checkPod(p *corev1.Pod) *finding {
	for i, ip := range p.Status.PodIPs {
		if f := checkAddr(fmt.Sprintf("status.podIPs[%d].ip", i), ip.IP); f != nil {
			return f
		}
	}
	return first(
		checkOptional("status.podIP", p.Status.PodIP, checkAddr),
		checkOptional("spec.hostname", p.Spec.Hostname, checkLabel),
		checkOptional("spec.subdomain", p.Spec.Subdomain, checkLabel),
		checkOptional("metadata.uid", string(p.UID), checkUID),
		checkHostnameOverride(&p.Spec),
		checkHostAliases(p.Spec.HostAliases),
	)
}

// checkUID refuses what cannot be the name of a pod's directory.
func checkUID(field, uid string) *finding {
	if problems := content.IsPathSegmentName(uid); len(problems) > 0 {
		return found(field, "%q %s; want that of the pod's directory, or leave it out", uid, strings.Join(problems, "; "))
	}
	return nil
}

// maxHostname is what the API takes for a hostnameOverride (KEP-4762).
const maxHostname = 64

func checkHostnameOverride(spec *corev1.PodSpec) *finding {
	const field = "spec.hostnameOverride"
	switch name := spec.HostnameOverride; {
	case name == nil:
		return nil
	case spec.SetHostnameAsFQDN != nil && *spec.SetHostnameAsFQDN:
		return found(field, "does not go with setHostnameAsFQDN; want one of the two")
	case spec.HostNetwork:
		return found(field, "does not go with hostNetwork, where the hostname is the node's; want one of the two")
	case len(*name) > maxHostname:
		return found(field, "%d characters; want at most %d", len(*name), maxHostname)
	default:
		return checkName(field, *name, validation.IsDNS1123Subdomain)
	}
}

func checkHostAliases(aliases []corev1.HostAlias) *finding {
	for i, a := range aliases {
		at := fmt.Sprintf("spec.hostAliases[%d]", i)
		if f := checkAddr(at+".ip", a.IP); f != nil {
			return f
		}
		for j, name := range a.Hostnames {
			if f := checkName(fmt.Sprintf("%s.hostnames[%d]", at, j), name, validation.IsDNS1123Subdomain); f != nil {
				return f
			}
		}
	}
	return nil
}

func checkConfigMap(m *corev1.ConfigMap) *finding {
	size := 0
	for _, key := range slices.Sorted(maps.Keys(m.Data)) {
		if f := checkName("data", key, validation.IsConfigMapKey); f != nil {
			return f
		}
		if _, ok := m.BinaryData[key]; ok {
			return found("binaryData."+key, "also in data; want each key once")
		}
		size += len(m.Data[key])
	}
	for _, key := range slices.Sorted(maps.Keys(m.BinaryData)) {
		if f := checkName("binaryData", key, validation.IsConfigMapKey); f != nil {
			return f
		}
		size += len(m.BinaryData[key])
	}
	if size > corev1.MaxSecretSize { // the API's limit for ConfigMaps, too
		return found("data", "%d bytes; want at most %d, or several ConfigMaps", size, corev1.MaxSecretSize)
	}
	return nil
}

func checkServiceCIDR(c *networkingv1.ServiceCIDR) *finding {
	if n := len(c.Spec.CIDRs); n < 1 || n > 2 {
		return found("spec.cidrs", "%d ranges; want one, or one of each family", n)
	}
	if f := checkPrefixes("spec.cidrs", c.Spec.CIDRs); f != nil {
		return f
	}
	for i, s := range c.Spec.CIDRs {
		p := netip.MustParsePrefix(s)
		field := fmt.Sprintf("spec.cidrs[%d]", i)
		if p != p.Masked() {
			return found(field, "%s has bits beyond its length; write %s", s, p.Masked())
		}
		if i == 1 && familyOf(s) == familyOf(c.Spec.CIDRs[0]) {
			return found(field, "%s is %s like the first; want one range of each family, and more in ServiceCIDRs of their own", s, familyOf(s))
		}
	}
	return nil
}

func checkImport(s *mcsv1alpha1.ServiceImport) *finding {
	if f := checkOneOf("spec.type", string(s.Spec.Type), string(mcsv1alpha1.ClusterSetIP), string(mcsv1alpha1.Headless)); f != nil {
		return f
	}
	for i, ip := range s.Spec.IPs {
		if f := checkAddr(fmt.Sprintf("spec.ips[%d]", i), ip); f != nil {
			return f
		}
	}
	for i, p := range s.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if f := first(checkOptional(at+".name", p.Name, checkLabel), checkProtocol(at+".protocol", p.Protocol), checkPort(at+".port", p.Port)); f != nil {
			return f
		}
	}
	return nil
}
