package cni

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// previous returns prevResult, nil if there is none.
func previous(c *types.PluginConf) (*current.Result, error) {
	if c.RawPrevResult == nil {
		return nil, nil
	}
	var err error
	if holey(c.RawPrevResult) { // the library would follow it
		err = errors.New("a list in it has a null")
	} else {
		err = version.ParsePrevResult(c)
	}
	var r *current.Result
	if err == nil {
		r, err = current.NewResultFromResult(c.PrevResult)
	}
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	return r, nil
}

// holey says whether a list anywhere in a JSON value has a null in it.
func holey(v any) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, func(v any) bool { return v == nil || holey(v) })
	case map[string]any:
		for _, v := range v {
			if holey(v) {
				return true
			}
		}
	}
	return false
}

// checkPrevious refuses a list in which another plugin makes the pod's interface of that name, too.
func checkPrevious(r *current.Result, ifname string) error {
	if r == nil {
		return nil
	}
	for _, i := range r.Interfaces {
		if i.Name == ifname && i.Sandbox != "" {
			return types.NewError(types.ErrInvalidNetworkConfig, "prevResult has the pod's interface "+ifname, "this plugin makes it: no other of the list can")
		}
	}
	return nil
}

// chain adds an attachment to what the plugins before have made, which is passed on as it is (specification, section 2, ADD).
// Their name servers are replaced where the configuration has any.
func chain(before, own *current.Result) *current.Result {
	if before == nil {
		return own
	}
	out := *before
	out.CNIVersion = own.CNIVersion
	for _, ip := range own.IPs {
		*ip.Interface += len(before.Interfaces)
	}
	out.Interfaces = slices.Concat(before.Interfaces, own.Interfaces)
	out.IPs = slices.Concat(before.IPs, own.IPs)
	out.Routes = slices.Concat(before.Routes, own.Routes)
	if !own.DNS.IsEmpty() {
		out.DNS = own.DNS
	}
	return &out
}

// includes says whether a result has the address.
func includes(r *current.Result, a netip.Addr) bool {
	return slices.ContainsFunc(r.IPs, func(ip *current.IPConfig) bool {
		other, _ := netip.AddrFromSlice(ip.Address.IP)
		return other.Unmap() == a
	})
}
