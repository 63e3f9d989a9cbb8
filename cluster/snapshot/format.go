package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/ropewalk-net/ropewalk/cluster"
)

const (
	magic = "ropewalk snapshot "
	// maxRecord bounds what is read at once. Objects of the API are of 1.5 MiB at most, which is etcd's limit.
	maxRecord = 8 << 20
	// maxElements bounds what the few octets of an empty value can blow up to; a slice of the API has 1,000 endpoints.
	maxElements = 1 << 17
)

// write writes a snapshot of objects to w.
func write(w io.Writer, h Header, objects iter.Seq[cluster.Object]) error {
	enc, err := cbor.EncOptions{Time: cbor.TimeRFC3339Nano}.UserBufferEncMode()
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	fmt.Fprintf(out, "%s%d\n", magic, version)
	var buf bytes.Buffer
	record := func(v any) error {
		if err := enc.MarshalToBuffer(v, &buf); err != nil {
			return err
		}
		if buf.Len() > maxRecord {
			return fmt.Errorf("a record of %d octets, the limit is %d", buf.Len(), maxRecord)
		}
		// The buffered writer keeps its first error.
		out.Write(binary.BigEndian.AppendUint32(nil, uint32(buf.Len())))
		_, err := out.Write(buf.Bytes())
		buf.Reset()
		return err
	}
	if err := record(h); err != nil {
		return err
	}
	for o := range objects {
		buf.WriteByte(byte(o.Kind()))
		v := any(o)
		if s, ok := o.(*cluster.Slice); ok {
			v = fromSlice(s)
		}
		if err := record(v); err != nil {
			return fmt.Errorf("%s %s: %w", o.Kind(), o.Key(), err)
		}
	}
	out.Write(make([]byte, 4))
	if err := out.Flush(); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// read reads a snapshot to its end, and calls head with its header, which may refuse it, and each with every object as it
// comes. Only when it returns without an error were they what has been written; until then they are merely values.
func read(r io.Reader, head func(Header) error, each func(cluster.Object)) (err error) {
	in := &reader{in: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	in.dec, err = cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:   8,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       maxElements,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		UTF8:              cbor.UTF8DecodeInvalid, // the API's own clients do not look either
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
	if err != nil {
		return err
	}
	if err := in.version(); err != nil {
		return err
	}
	h, err := in.header()
	if err != nil {
		return err
	}
	if err := head(h); err != nil {
		return err
	}
	for {
		o, err := in.object(h.Kinds)
		if err != nil {
			return err
		}
		if o == nil {
			return in.end()
		}
		each(o)
	}
}

// reader takes a snapshot apart.
type reader struct {
	in  *bufio.Reader
	sum hash.Hash
	dec cbor.DecMode
	buf bytes.Buffer
}

// damaged is the error for what cannot be a snapshot. A file that ends too early is damaged; one that cannot be read is
// perhaps not.
func damaged(what string, err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%w: %s", ErrDamaged, what)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends within %s", ErrDamaged, what)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

func (r *reader) version() error {
	var line []byte
	for len(line) < len(magic)+10 && !bytes.HasSuffix(line, []byte("\n")) {
		c, err := r.in.ReadByte()
		if err != nil {
			return damaged("the first line", err)
		}
		line = append(line, c)
	}
	r.sum.Write(line)
	text, ok := strings.CutPrefix(string(line), magic)
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "\n"), 10, 31)
	if !ok || err != nil {
		return damaged(fmt.Sprintf("its first line is not %q and a number", magic), nil)
	}
	if n != version {
		return fmt.Errorf("%w: %d, this program reads %d", ErrVersion, n, version)
	}
	return nil
}

// record reads the next record into r.buf, which is empty at the end.
func (r *reader) record() error {
	var size [4]byte
	if _, err := io.ReadFull(r.in, size[:]); err != nil {
		return damaged("a record's length", err)
	}
	r.sum.Write(size[:])
	n := binary.BigEndian.Uint32(size[:])
	if n > maxRecord {
		return damaged(fmt.Sprintf("a record of %d octets", n), nil)
	}
	// The buffer grows with what is there, not with what is said to be.
	r.buf.Reset()
	if _, err := io.CopyN(&r.buf, r.in, int64(n)); err != nil {
		return damaged("a record", err)
	}
	r.sum.Write(r.buf.Bytes())
	return nil
}

func (r *reader) header() (h Header, err error) {
	if err := r.record(); err != nil {
		return h, err
	}
	if err := r.dec.Unmarshal(r.buf.Bytes(), &h); err != nil {
		return h, damaged(fmt.Sprintf("its header: %v", err), nil)
	}
	return h, nil
}

// object returns the next object, nil at the end.
func (r *reader) object(kinds cluster.Kinds) (cluster.Object, error) {
	if err := r.record(); err != nil || r.buf.Len() == 0 {
		return nil, err
	}
	data := r.buf.Bytes()
	k := cluster.Kind(data[0])
	if k >= cluster.NumKinds || !kinds.Has(k) {
		return nil, damaged(fmt.Sprintf("an object of kind %d (%s)", k, k), nil)
	}
	v := newValue(k)
	if err := r.dec.Unmarshal(data[1:], v); err != nil {
		return nil, damaged(fmt.Sprintf("a %s: %v", k, err), nil)
	}
	o, ok := v.(cluster.Object)
	if !ok {
		o = v.(*slice).toSlice()
	}
	if o.Key().Name == "" {
		return nil, damaged(fmt.Sprintf("a %s without a name", k), nil)
	}
	return o, nil
}

// newValue returns what a value of a kind is decoded into: itself or, for slices, a slice.
func newValue(k cluster.Kind) any {
	switch k {
	case cluster.KindNamespace:
		return &cluster.Namespace{}
	case cluster.KindService:
		return &cluster.Service{}
	case cluster.KindSlice:
		return &slice{}
	case cluster.KindPod:
		return &cluster.Pod{}
	case cluster.KindNode:
		return &cluster.Node{}
	case cluster.KindServiceCIDR:
		return &cluster.ServiceCIDR{}
	case cluster.KindServiceImport:
		return &cluster.ServiceImport{}
	default:
		return &cluster.ConfigMap{}
	}
}

// end reads what is behind the last record.
func (r *reader) end() error {
	var sum [sha256.Size]byte
	if _, err := io.ReadFull(r.in, sum[:]); err != nil {
		return damaged("the checksum", err)
	}
	if !bytes.Equal(sum[:], r.sum.Sum(nil)) {
		return damaged("the checksum is another", nil)
	}
	if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
		return damaged("something follows the checksum", err)
	}
	return nil
}
