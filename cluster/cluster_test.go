package cluster

import (
	"testing"
	"unsafe"
)

// TestSizes bounds the values that come by the 100,000 by the size classes that they are allocated in: what only some
// consumers ask for is behind pointers, or in room that is there anyway.
func TestSizes(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the bounds are those of 64-bit platforms")
	}
	for name, size := range map[string]struct{ got, most uintptr }{
		"Service":       {unsafe.Sizeof(Service{}), 112},
		"ServicePort":   {unsafe.Sizeof(ServicePort{}), 40},
		"Slice":         {unsafe.Sizeof(Slice{}), 160},
		"Endpoint":      {unsafe.Sizeof(Endpoint{}), 112},
		"EndpointProxy": {unsafe.Sizeof(EndpointProxy{}), 16},
		"Node":          {unsafe.Sizeof(Node{}), 48},
	} {
		if size.got > size.most {
			t.Errorf("a %s has %d octets, want at most %d", name, size.got, size.most)
		}
	}
}
