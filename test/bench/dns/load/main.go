// Command load asks a DNS server as fast as it answers, as dnsperf does, with dnsperf's options and output as far as
// test/bench/dns uses them, but reads and writes many datagrams with one system call. It is for servers that dnsperf
// cannot keep busy from one core.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
)

var (
	server  = flag.String("s", "127.0.0.1", "the server's `address`")
	port    = flag.Int("p", 53, "its `port`")
	data    = flag.String("d", "", "`file` of questions, each a name and a type")
	clients = flag.Int("c", 8, "sockets")
	window  = flag.Int("q", 100, "questions under way at a time, of all sockets")
	timeout = flag.Float64("t", 5, "`seconds` after which a question is lost")
	length  = flag.Float64("l", 10, "`seconds` to run for")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run() error {
	questions, err := readFile(*data)
	if err != nil {
		return err
	}
	sum, took, err := load(fmt.Sprintf("%s:%d", *server, *port), questions)
	if err != nil {
		return err
	}
	sum.print(os.Stdout, took)
	return nil
}

// load asks a server the questions, again and again, and returns what came of them and how long it took.
func load(addr string, questions [][]byte) (sum counts, took time.Duration, err error) {
	start := time.Now()
	var (
		wg    sync.WaitGroup
		all   = make([]*client, *clients)
		errs  = make([]error, *clients)
		until = start.Add(seconds(*length))
	)
	for i := range all {
		if all[i], err = newClient(addr, max(1, *window / *clients), questions); err != nil {
			return sum, 0, err
		}
		all[i].next = i * len(questions) / *clients // so that they do not all ask the same at a time
	}
	for i, c := range all {
		wg.Go(func() { errs[i] = c.run(until) })
	}
	wg.Wait()
	for _, c := range all {
		sum.add(&c.counts)
	}
	return sum, time.Since(start), errors.Join(errs...)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func readFile(name string) ([][]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	questions, err := read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return questions, nil
}

// read packs the questions of a file.
func read(r io.Reader) (packed [][]byte, err error) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var name, qtype string
		if _, err := fmt.Sscan(lines.Text(), &name, &qtype); err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		t, ok := dns.StringToType[qtype]
		if !ok {
			return nil, fmt.Errorf("%q: no such type", lines.Text())
		}
		raw, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), t).Pack()
		if err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		packed = append(packed, raw)
	}
	if len(packed) == 0 {
		return nil, errors.New("no questions")
	}
	return packed, nil
}

// counts is what came of the questions.
type counts struct {
	completed, lost int
	codes           [16]int
}

func (c *counts) add(d *counts) {
	c.completed += d.completed
	c.lost += d.lost
	for i := range c.codes {
		c.codes[i] += d.codes[i]
	}
}

// print says what dnsperf would.
func (c *counts) print(w io.Writer, took time.Duration) {
	sent := c.completed + c.lost
	part := func(n, of int) float64 { return 100 * float64(n) / float64(max(1, of)) }
	fmt.Fprintf(w, "Statistics:\n\n  Queries sent:         %d\n", sent)
	fmt.Fprintf(w, "  Queries completed:    %d (%.2f%%)\n", c.completed, part(c.completed, sent))
	fmt.Fprintf(w, "  Queries lost:         %d (%.2f%%)\n\n  Response codes:       ", c.lost, part(c.lost, sent))
	sep := ""
	for code, n := range c.codes {
		if n > 0 {
			fmt.Fprintf(w, "%s%s %d (%.2f%%)", sep, dns.RcodeToString[code], n, part(n, c.completed))
			sep = ", "
		}
	}
	fmt.Fprintf(w, "\n  Run time (s):         %.6f\n", took.Seconds())
	fmt.Fprintf(w, "  Queries per second:   %.6f\n", float64(c.completed)/took.Seconds())
}

// client is one socket with its questions under way. A slot is one of these; its number is the low byte of the ID, and the
// high byte counts how often it was used, so that an answer that is too late does not count for the next question.
type client struct {
	counts
	conn      *net.UDPConn
	batches   *ipv4.PacketConn
	questions [][]byte
	next      int // index in questions
	slots     []slot
	idle      []byte // numbers of the slots with nothing under way
	in, out   []ipv4.Message
}

type slot struct {
	used uint8
	busy bool
	buf  [512]byte
}

func newClient(addr string, window int, questions [][]byte) (*client, error) {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return nil, err
	}
	udp := conn.(*net.UDPConn)
	window = min(window, 256)
	c := &client{conn: udp, batches: ipv4.NewPacketConn(udp), questions: questions, slots: make([]slot, window)}
	for i := range window {
		c.idle = append(c.idle, byte(i))
		c.in = append(c.in, ipv4.Message{Buffers: [][]byte{make([]byte, 4096)}})
		c.out = append(c.out, ipv4.Message{Buffers: [][]byte{nil}})
	}
	return c, nil
}

// run asks until a time and then waits for what is under way.
func (c *client) run(until time.Time) error {
	defer c.conn.Close()
	for {
		if time.Now().Before(until) {
			if err := c.ask(); err != nil {
				return err
			}
		} else if len(c.idle) == len(c.slots) {
			return nil
		}
		if err := c.hear(); err != nil {
			return err
		}
	}
}

// ask sends a question for every idle slot.
func (c *client) ask() error {
	out := c.out[:len(c.idle)]
	for i, number := range c.idle {
		s := &c.slots[number]
		s.used++
		s.busy = true
		n := copy(s.buf[:], c.questions[c.next])
		if c.next++; c.next == len(c.questions) {
			c.next = 0
		}
		s.buf[0], s.buf[1] = s.used, number
		out[i].Buffers[0] = s.buf[:n]
	}
	c.idle = c.idle[:0]
	for len(out) > 0 {
		n, err := c.batches.WriteBatch(out, 0)
		if err != nil {
			return err
		}
		out = out[n:]
	}
	return nil
}

// hear waits for answers. If none comes for the timeout, all questions under way are lost.
func (c *client) hear() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(seconds(*timeout))); err != nil {
		return err
	}
	n, err := c.batches.ReadBatch(c.in, 0)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		for i := range c.slots {
			if c.slots[i].busy {
				c.lost++
				c.free(byte(i))
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range c.in[:n] {
		c.take(m.Buffers[0][:m.N])
	}
	return nil
}

// take counts an answer, if it is one to a question under way.
func (c *client) take(msg []byte) {
	if len(msg) < 12 || int(msg[1]) >= len(c.slots) {
		return
	}
	s := &c.slots[msg[1]]
	flags := binary.BigEndian.Uint16(msg[2:])
	if !s.busy || msg[0] != s.used || flags&0x8000 == 0 {
		return
	}
	c.completed++
	c.codes[flags&0xf]++
	c.free(msg[1])
}

func (c *client) free(number byte) {
	c.slots[number].busy = false
	c.idle = append(c.idle, number)
}
