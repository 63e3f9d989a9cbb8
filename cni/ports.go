package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

// parsePorts reads what the runtime asks for by the capability portMappings (CONVENTIONS.md of containernetworking/cni).
func parsePorts(raw []json.RawMessage, localhost bool) ([]portmap.Mapping, error) {
	var out []portmap.Mapping
	for _, b := range raw {
		var p struct {
			HostPort, ContainerPort uint16
			Protocol, HostIP        string
		}
		if err := json.Unmarshal(b, &p); err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "runtimeConfig.portMappings cannot be read", err.Error())
		}
		if p.HostPort == 0 {
			continue // the runtime lists ports that are not to be led there, too
		}
		m := portmap.Mapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: portmap.TCP}
		var err error
		if p.Protocol != "" {
			m.Protocol, err = portmap.ParseProtocol(p.Protocol)
		}
		if p.HostIP != "" && err == nil {
			m.HostIP, err = netip.ParseAddr(p.HostIP)
		}
		if err != nil || m.ContainerPort == 0 {
			return nil, wrong("runtimeConfig.portMappings", string(b), "it has hostPort, containerPort, a protocol of tcp, udp or sctp, and maybe a hostIP")
		}
		switch own := m.HostIP.IsLoopback(); {
		case own && m.HostIP.Is6():
			return nil, unsupported("hostIP ::1", "Linux leads no packets of ::1 to other interfaces: 127.0.0.1 can be had")
		case own && !localhost:
			return nil, unsupported("hostIP "+m.HostIP.String(), "turn localhostPorts on (ropewalk routes --localhost-ports)")
		}
		out = append(out, m)
	}
	return out, nil
}

func portOwner(args *skel.CmdArgs) portmap.Owner {
	return portmap.Owner{Container: args.ContainerID, Interface: args.IfName}
}

// localnet says whether ports of 127.0.0.0/8 lead to a pod, and by which interface.
func (c Config) localnet(s link.Spec) (by string, ok bool) {
	if by = s.Host; s.Bridge != nil {
		by = s.Bridge.Name
	}
	return by, c.LocalhostPorts && s.Has4() && slices.ContainsFunc(c.Ports, func(m portmap.Mapping) bool {
		return !m.HostIP.IsValid() || m.HostIP.IsUnspecified() || m.HostIP.IsLoopback()
	})
}

// openPorts leads the node's ports to the pod, if there are to be any. The rules of ports keep from 127.0.0.1 whoever may not get there,
// so that they come first.
func openPorts(args *skel.CmdArgs, c Config, s link.Spec) error {
	if len(c.Ports) == 0 {
		return nil
	}
	err := portmap.Add(portOwner(args), c.Ports, s.Networks(), c.LocalhostPorts)
	if by, ok := c.localnet(s); ok && err == nil {
		err = link.OpenLocalnet(by)
	}
	switch {
	case errors.Is(err, portmap.ErrTaken):
		return types.NewError(CodeTaken, "a port is another pod's", err.Error())
	case errors.Is(err, portmap.ErrInvalid):
		return types.NewError(types.ErrInvalidNetworkConfig, "runtimeConfig.portMappings", err.Error())
	case err != nil:
		return kernelError("leading ports to the pod", err)
	}
	return nil
}

// opened is what a lease notes of the ports that lead to its pod, so that they can be led there again.
type opened struct {
	Ports     []portmap.Mapping
	Localhost bool `json:",omitempty"`
}

// notePorts returns the note, empty for no ports, and for more than a lease has room for.
func (c Config) notePorts() string {
	if len(c.Ports) == 0 {
		return ""
	}
	b, err := json.Marshal(opened{c.Ports, c.LocalhostPorts})
	if err != nil || len(b) > ipam.MaxPorts {
		return ""
	}
	return string(b)
}

// mendPorts leads ports to pods again if somebody has taken the rules away, as those do that flush the node's. All of the leases note ports.
// It holds the leases meanwhile: a DEL that has closed the pod's ports closes them once more before it ends the lease.
func mendPorts(dir string, leases []ipam.Lease, specs []link.Spec) (mended int, err error) {
	if len(leases) == 0 {
		return 0, nil
	}
	entries, err := portmap.List()
	if err != nil {
		return 0, err
	}
	there := map[portmap.Owner]bool{}
	for _, e := range entries {
		there[e.Owner] = true
	}
	var errs []error
	doubt := false
	for i, l := range leases {
		var was opened
		if err := json.Unmarshal([]byte(l.Ports), &was); err != nil {
			errs = append(errs, fmt.Errorf("ports of container %s: %w", l.Container, err))
			continue
		}
		owner := portmap.Owner{Container: l.Container, Interface: l.Interface}
		// The rules are the same for all: where they are right for the first, it is enough that the others have some ports.
		if there[owner] && (i > 0 && !doubt || !errors.Is(portmap.Check(owner, was.Ports, specs[i].Networks(), was.Localhost), portmap.ErrMissing)) {
			continue
		}
		doubt = true
		err := withStore(dir, func(s *ipam.Store) error {
			now, leased, err := s.Get(l.Container, l.Interface)
			if err != nil || !leased || !now.Since.Equal(l.Since) {
				return err
			}
			if attached, err := link.Exists(specs[i]); err != nil || !attached {
				return err
			}
			mended++
			return portmap.Add(owner, was.Ports, specs[i].Networks(), was.Localhost)
		})
		errs = append(errs, err)
	}
	return mended, errors.Join(errs...)
}

func closePorts(args *skel.CmdArgs) error {
	if err := portmap.Delete(portOwner(args)); err != nil {
		return kernelError("taking ports of the pod away", err)
	}
	return nil
}

func checkPorts(args *skel.CmdArgs, c Config, s link.Spec) error {
	if len(c.Ports) == 0 {
		return nil
	}
	err := portmap.Check(portOwner(args), c.Ports, s.Networks(), c.LocalhostPorts)
	if by, ok := c.localnet(s); ok {
		err = errors.Join(err, link.CheckLocalnet(by))
	}
	if err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	return nil
}
