package standin_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/test/standin"
	"github.com/ropewalk-net/ropewalk/test/standin/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	contract.Run(t, standin.New(t).Kubeconfig(t.TempDir()))
}
