package e2e

import (
	"testing"

	"github.com/ropewalk-net/ropewalk/test/e2e/realapi"
	"github.com/ropewalk-net/ropewalk/test/standin/contract"
)

// TestStandinContract holds a real API server to what the stand-in is held to.
func TestStandinContract(t *testing.T) {
	kubeconfig, _ := realapi.Start(t)
	contract.Run(t, kubeconfig)
}
