package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

// parsePorts reads what the runtime asks for by the capability portMappings (CONVENTIONS.md of containernetworking/cni).
func parsePorts(raw []json.RawMessage) ([]portmap.Mapping, error) {
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
		out = append(out, m)
	}
	return out, nil
}

func portOwner(args *skel.CmdArgs) portmap.Owner {
	return portmap.Owner{Container: args.ContainerID, Interface: args.IfName}
}

// openPorts leads the node's ports to the pod, if there are to be any.
func openPorts(args *skel.CmdArgs, ports []portmap.Mapping, pod []netip.Prefix) error {
	if len(ports) == 0 {
		return nil
	}
	switch err := portmap.Add(portOwner(args), ports, pod, false); {
	case errors.Is(err, portmap.ErrTaken):
		return types.NewError(CodeTaken, "a port is another pod's", err.Error())
	case errors.Is(err, portmap.ErrInvalid):
		return types.NewError(types.ErrInvalidNetworkConfig, "runtimeConfig.portMappings", err.Error())
	case err != nil:
		return kernelError("leading ports to the pod", err)
	}
	return nil
}

func closePorts(args *skel.CmdArgs) error {
	if err := portmap.Delete(portOwner(args)); err != nil {
		return kernelError("taking ports of the pod away", err)
	}
	return nil
}

func checkPorts(args *skel.CmdArgs, ports []portmap.Mapping, pod []netip.Prefix) error {
	if len(ports) == 0 {
		return nil
	}
	if err := portmap.Check(portOwner(args), ports, pod, false); err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	return nil
}
