package nft

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// listing returns the messages that make a table of a random state. A kernel lists it in messages of the same form.
func listing(f family, changes int) (*table, []byte) {
	r := rand.New(rand.NewPCG(5, 6))
	x := &table{state: newState(f, testNode()), link: &link{}}
	for range changes {
		x.state.note(randomChange(r, f.size == 16))
	}
	m := &message{family: f}
	b := x.state.all(nil)
	b.anew = true
	x.write(m, b)
	return x, m.buf
}

// parse takes the messages of a listing as they come.
func parse(f family, b []byte) (*held, error) {
	h := newHeld()
	names := map[string]set{}
	specs := f.specs()
	for i, spec := range specs {
		names[spec.name] = set(i)
	}
	for len(b) > 0 {
		a, rest, err := nextAnswer(b)
		if err != nil {
			return nil, err
		}
		b = rest
		switch body := a.body[4:]; a.typ & 0xff {
		case unix.NFT_MSG_NEWTABLE:
			err = h.takeTable(body)
		case unix.NFT_MSG_NEWSET:
			err = h.takeSet(body)
		case unix.NFT_MSG_NEWCHAIN:
			err = h.takeChain(body)
		case unix.NFT_MSG_NEWRULE:
			err = h.takeRule(body)
		case unix.NFT_MSG_NEWSETELEM:
			i := names[findText(body, unix.NFTA_SET_ELEM_LIST_SET)]
			err = h.takeElements(i, specs[i], body)
		}
		if err != nil {
			return nil, err
		}
	}
	return h, h.finish(f)
}

// TestReadsWhatItWrites holds that there is nothing to change in a table that was just made.
func TestReadsWhatItWrites(t *testing.T) {
	for _, f := range []family{ipv4, ipv6} {
		x, b := listing(f, 100)
		h, err := parse(f, b)
		if err != nil {
			t.Fatal(err)
		}
		if again := x.state.all(h); !f.sameSets(h) || !x.state.differ(again, h) || !again.empty() {
			t.Errorf("%+v", again)
		}
	}
}

// FuzzDump holds that no listing makes the parser, or what decides by it, panic.
func FuzzDump(f *testing.F) {
	for _, fam := range []family{ipv4, ipv6} {
		_, b := listing(fam, 6)
		f.Add(fam.size == 4, b)
	}
	f.Add(true, []byte{20, 0, 0, 0, unix.NFT_MSG_NEWSETELEM, unix.NFNL_SUBSYS_NFTABLES, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, four bool, b []byte) {
		fam := ipv6
		if four {
			fam = ipv4
		}
		h, err := parse(fam, b)
		if err != nil {
			return
		}
		fam.sameSets(h)
		x, _ := listing(fam, 6)
		batch := x.state.all(h)
		if x.state.differ(batch, h) {
			x.write(&message{family: fam}, batch)
		}
	})
}
