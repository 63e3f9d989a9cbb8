package apiserver

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// bufferSize is that of a reader of a body. Most objects fit: they are decoded where they lie.
	bufferSize = 64 << 10
	// maxObject bounds what is read into memory for one object, as client-go does; etcd takes 1.5 MB.
	maxObject = 16 << 20
)

var (
	errTooLarge  = errors.New("an object of more than 16 MiB")
	errMalformed = errors.New("malformed protobuf")
)

// take returns the next n bytes of r, which are good until r is read again. io.EOF means that there are none at all.
func take(r *bufio.Reader, n int) ([]byte, error) {
	if n > maxObject {
		return nil, errTooLarge
	}
	if n <= r.Size() {
		b, err := r.Peek(n)
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		_, err = r.Discard(n) // moves on in the buffer, and leaves what is in it
		return b, err
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// nextFrame returns the next frame of a watch in protobuf: bytes behind their number in four octets.
func nextFrame(r *bufio.Reader) ([]byte, error) {
	head, err := take(r, 4)
	if err != nil {
		return nil, err
	}
	b, err := take(r, int(binary.BigEndian.Uint32(head)))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// readWatchEvent reads a frame. The event's object lies in the frame's memory.
func readWatchEvent(frame []byte) (e metav1.WatchEvent, err error) {
	m := message{rest: frame}
	for m.next() {
		switch m.num {
		case 1:
			e.Type = m.text()
		case 2:
			x := message{rest: m.bytes()}
			for x.next() {
				if x.num == 1 {
					e.Object.Raw = x.bytes()
				}
			}
			m.and(x.whole())
		}
	}
	if m.whole() {
		return e, nil
	}
	e = metav1.WatchEvent{}
	if err := e.Unmarshal(frame); err != nil {
		return e, fmt.Errorf("%w: %v", errMalformed, err) // not %w: the end of a frame is not that of the stream
	}
	return e, nil
}

// envelope is what an object in protobuf comes in (runtime.Unknown). Its fields lie in the object's memory.
type envelope struct{ apiVersion, kind, object []byte }

// openEnvelope is not ok for what is not protobuf, or malformed.
func openEnvelope(raw []byte) (e envelope, ok bool) {
	if !isProtobuf(raw) {
		return e, false
	}
	m := message{rest: raw[len(protobufMagic):]}
	for m.next() {
		switch m.num {
		case 1:
			m.and(e.readType(m.bytes()))
		case 2:
			e.object = m.bytes()
		case 3, 4:
			m.bytes()
		}
	}
	return e, m.whole()
}

func (e *envelope) readType(b []byte) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			e.apiVersion = m.bytes()
		case 2:
			e.kind = m.bytes()
		}
	}
	return m.whole()
}

// protobufList is list for protobuf: the envelope, in it a message, in that as field 1 the metadata and as field 2 the
// objects. Only one object at a time is in memory, and one that is malformed does not take the others with it.
func (d *decoder) protobufList(r *bufio.Reader, f each) (*metav1.ListMeta, error) {
	var m *metav1.ListMeta
	_, err := r.Discard(len(protobufMagic))
	if err == nil {
		err = walk(r, func(num protowire.Number, n int) error {
			switch num {
			case 1:
				b, err := take(r, n)
				if err != nil {
					return err
				}
				return d.checkListType(b)
			case 2:
				if m != nil {
					return errMalformed // by the rules of protobuf it would replace what has been delivered
				}
				m, err = d.items(&io.LimitedReader{R: r, N: int64(n)}, f)
				return err
			}
			return skip(r, n)
		})
	}
	if err == nil && m == nil {
		err = errors.New("it has no metadata")
	}
	if err != nil {
		return nil, fmt.Errorf("decode a list of %s: %w", d.gvk.Kind, err)
	}
	return m, nil
}

func (d *decoder) checkListType(b []byte) error {
	var e envelope
	if !e.readType(b) {
		return errMalformed
	}
	if kind := string(e.kind); kind != "" && kind != d.gvk.Kind+"List" || len(e.apiVersion) > 0 && string(e.apiVersion) != d.apiVersion {
		return fmt.Errorf("got a %.80q of %.80q", kind, e.apiVersion)
	}
	return nil
}

// items decodes the message that a list is.
func (d *decoder) items(body *io.LimitedReader, f each) (m *metav1.ListMeta, err error) {
	r := bufio.NewReaderSize(body, bufferSize)
	err = walk(r, func(num protowire.Number, n int) error {
		if num != 1 && num != 2 {
			return skip(r, n)
		}
		b, err := take(r, n)
		if err != nil {
			return err
		}
		if num == 1 {
			if m == nil {
				m = &metav1.ListMeta{}
			}
			return m.Unmarshal(b)
		}
		if o, err := d.item(b); err != nil {
			f(nil, &undecoded{err: err})
		} else {
			f(o, nil)
		}
		return nil
	})
	if err == nil && body.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// walk calls f for each field of a message that is a string, bytes or a message, with its number and length, up to the
// end of r. f reads the field.
func walk(r *bufio.Reader, f func(num protowire.Number, n int) error) error {
	for {
		tag, err := binary.ReadUvarint(r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		num, typ := protowire.DecodeTag(tag)
		switch typ {
		case protowire.VarintType:
			_, err = binary.ReadUvarint(r)
		case protowire.Fixed32Type:
			err = skip(r, 4)
		case protowire.Fixed64Type:
			err = skip(r, 8)
		case protowire.BytesType:
			var n uint64
			if n, err = binary.ReadUvarint(r); err == nil && n > math.MaxInt {
				err = errMalformed
			}
			if err == nil {
				err = f(num, int(n))
			}
		default: // groups, which Kubernetes does not have, and nonsense
			err = errMalformed
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
}

func skip(r *bufio.Reader, n int) error {
	_, err := r.Discard(n)
	return err
}
