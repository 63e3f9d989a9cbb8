package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/parts"
)

// agentStatus is what an agent says of itself.
type agentStatus struct {
	Version string `json:"version"`
	Node    string `json:"node"`
	Kernel  string `json:"kernel"`
	// SourceAge is for how many seconds the cluster has not been heard of; 0 while what is known is current.
	SourceAge float64       `json:"sourceAgeSeconds"`
	Parts     []parts.State `json:"parts"`
	// Counts are what parts serve, by what it is.
	Counts map[string]float64 `json:"counts"`
}

// ready says whether there are parts, and all are ready. There are none at first.
func (st agentStatus) ready() bool {
	return len(st.Parts) > 0 && !slices.ContainsFunc(st.Parts, func(p parts.State) bool { return !p.Ready })
}

// counted are the metrics that say what an agent serves, in words.
var counted = []struct{ metric, what string }{
	{"ropewalk_hosts_files", "hosts files"},
	{"ropewalk_proxy_services", "services"},
	{"ropewalk_proxy_endpoints", "endpoints"},
	{"ropewalk_routes_nodes", "other nodes"},
	{"ropewalk_routes_routes", "ranges of pods of other nodes"},
	{"ropewalk_routes_left_out", "ranges that are not reached"},
	{"ropewalk_cni_leases", "addresses of pods"},
}

// counts returns what the metrics say is served; those of several labels are added up.
func counts(families []*dto.MetricFamily) map[string]float64 {
	out := map[string]float64{}
	for _, f := range families {
		for _, c := range counted {
			if f.GetName() != c.metric {
				continue
			}
			for _, m := range f.GetMetric() {
				out[c.what] += m.GetGauge().GetValue()
			}
		}
	}
	return out
}

func kernelVersion() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func newStatus() *cobra.Command {
	var address, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent on this node is doing",
		Long: `status asks the agent on this node what it is doing, and shows which parts are ready, why others are not, and how much they
serve. A part that is degraded does all that this node can do, and something else is wrong: with other nodes, say.

Exit codes: 0 if all parts are ready, or degraded, 1 if some are not, 2 if the agent does not answer.`,
		Example: `  ropewalk status
  ropewalk status -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %q: want text or json", output)
			}
			st, err := askStatus(cmd.Context(), address)
			if err != nil {
				return fmt.Errorf("%w; does the agent run, and is --metrics its address?", err)
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(st)
			} else {
				err = st.print(cmd.OutOrStdout(), time.Now())
			}
			if err == nil && !st.ready() {
				err = errDifferent
			}
			return err
		},
	}
	cmd.Flags().StringVar(&address, "metrics", agentAddress, "the agent's --metrics")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	complete(cmd, "output", "text", "json")
	return cmd
}

// maxStatus is more than an agent says.
const maxStatus = 1 << 20

func askStatus(ctx context.Context, address string) (st agentStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, fmt.Errorf("%s: status %d", req.URL, resp.StatusCode)
	}
	return st, json.NewDecoder(io.LimitReader(resp.Body, maxStatus)).Decode(&st)
}

func (st agentStatus) print(w io.Writer, now time.Time) error {
	var b strings.Builder // what is shown came over the network, and may be anybody's who has the port
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "node\t%s\nversion\t%s\nkernel\t%s\n", st.Node, st.Version, st.Kernel)
	heard := "current"
	if st.SourceAge > 0 {
		heard = fmt.Sprintf("not heard of for %v", time.Duration(st.SourceAge*float64(time.Second)).Round(time.Second))
	}
	fmt.Fprintf(t, "cluster\t%s\n", heard)
	for _, c := range counted {
		if n, ok := st.Counts[c.what]; ok {
			fmt.Fprintf(t, "%s\t%.0f\n", c.what, n)
		}
	}
	fmt.Fprint(t, "\npart\tstate\tsince\tmessage\n")
	for _, p := range st.Parts {
		state, since, message := "ready", "", p.Error
		switch {
		case !p.Ready:
			state = "not ready"
		case p.Degraded != "":
			state, message = "degraded", p.Degraded
		}
		if !p.Since.IsZero() {
			since = now.Sub(p.Since).Round(time.Second).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, state, since, strings.ReplaceAll(message, "\n", "; "))
	}
	_ = t.Flush() // into memory
	_, err := io.WriteString(w, printable(b.String()))
	return err
}
