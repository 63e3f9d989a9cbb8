package cni

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
)

func TestStoreError(t *testing.T) {
	for _, c := range []struct {
		err  error
		code uint
	}{
		{nil, 0},
		{ipam.ErrBusy, 11},
		{ipam.ErrDamaged, 5},
		{ipam.ErrOwner, 4},
		{&ipam.ExhaustedError{}, 100},
		{ipam.ErrExists, 101},
		{ipam.ErrTaken, 102},
		{types.NewError(50, "x", ""), 50},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("leases: %w", err)
		}
		if got := storeError(err); codeOf(got) != c.code || (got == nil) != (err == nil) {
			t.Errorf("%v: %v, want code %d", err, got, c.code)
		}
	}
}

func TestYoung(t *testing.T) {
	now := time.Now()
	for ago, want := range map[time.Duration]bool{0: true, time.Second: true, 30 * time.Second: false, time.Hour: false, -time.Second: false, -9 * time.Hour: false} {
		if got := young(now.Add(-ago).Round(0), now.Round(0), 30*time.Second); got != want {
			t.Errorf("of %v ago: %v", ago, got)
		}
	}
}

func TestUndone(t *testing.T) {
	first := types.NewError(103, "veth", "no room")
	if got := undone(first, nil); got != error(first) {
		t.Error(got)
	}
	got := undone(first, errors.New("busy"))
	if codeOf(got) != 103 || !strings.Contains(got.Error(), "no room") || !strings.Contains(got.Error(), "busy") {
		t.Error(got)
	}
}
