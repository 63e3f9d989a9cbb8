package differential

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"
)

// patience is how long a server may take for something that it should do.
const patience = 15 * time.Second

// resend is after how long a question over UDP is sent again: a datagram can be lost on the loopback, too, when a
// receive buffer is full.
const resend = 2 * time.Second

// window is how many questions are on their way at a time.
const window = 24

// client asks one server, with many questions on their way at a time. It is for one goroutine.
type client struct {
	udp, tcp string
	// conns are kept from one ask to the next, by network.
	conns map[string]*dns.Conn
}

func newClient(s *server) *client {
	return &client{udp: s.udp, tcp: s.tcp, conns: map[string]*dns.Conn{}}
}

func (c *client) Close() {
	for _, conn := range c.conns {
		_ = conn.Close() // There is nothing in it any more that anybody waits for.
	}
}

// ask returns the replies to qs, in their order.
func (c *client) ask(qs []question) ([]*dns.Msg, error) {
	replies := make([]*dns.Msg, len(qs))
	for _, network := range []string{"udp", "tcp"} {
		var which []int
		for i, q := range qs {
			if q.via.tcp == (network == "tcp") {
				which = append(which, i)
			}
		}
		if err := c.pipeline(network, qs, which, replies); err != nil {
			return nil, err
		}
	}
	return replies, nil
}

// pipeline asks those of qs whose indexes are in which over one connection. The index is the ID of the message.
func (c *client) pipeline(network string, qs []question, which []int, replies []*dns.Msg) error {
	if len(which) == 0 {
		return nil
	}
	conn, err := c.conn(network)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	sent, got := 0, 0
	for got < len(which) {
		for ; sent < len(which) && sent-got < window; sent++ {
			if err := conn.WriteMsg(message(qs[which[sent]], which[sent])); err != nil {
				return fmt.Errorf("%v: %w", qs[which[sent]], err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(resend)); err != nil {
			return err
		}
		m, err := conn.ReadMsg()
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout() && time.Now().Before(deadline):
			if network == "udp" {
				err = c.again(conn, qs, which[:sent], replies)
			} else {
				err = nil
			}
			if err != nil {
				return err
			}
			continue
		case err != nil:
			return fmt.Errorf("%d of %d replies over %s: %w, missing: %v", got, len(which), network, err, missing(qs, which[:sent], replies))
		}
		if int(m.Id) < len(replies) && replies[m.Id] == nil {
			replies[m.Id] = m
			got++
			deadline = time.Now().Add(patience)
		}
	}
	return nil
}

// again sends the questions that have no reply once more.
func (c *client) again(conn *dns.Conn, qs []question, which []int, replies []*dns.Msg) error {
	for _, i := range which {
		if replies[i] == nil {
			if err := conn.WriteMsg(message(qs[i], i)); err != nil {
				return fmt.Errorf("%v: %w", qs[i], err)
			}
		}
	}
	return nil
}

// isSilent says whether the server does not answer q. It answers what comes over one TCP connection in order, so that
// the answer to a later question tells that there is none to an earlier one.
func (c *client) isSilent(q question) (bool, error) {
	conn, err := c.conn("tcp")
	if err != nil {
		return false, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return false, err
	}
	later := question{"cluster.local.", dns.TypeSOA, dns.ClassINET, via{tcp: true}}
	for id, m := range []question{q, later} {
		if err := conn.WriteMsg(message(m, id)); err != nil {
			return false, err
		}
	}
	m, err := conn.ReadMsg()
	if err != nil {
		return false, err
	}
	return m.Id == 1, nil
}

func missing(qs []question, which []int, replies []*dns.Msg) (m []question) {
	for _, i := range which {
		if replies[i] == nil {
			m = append(m, qs[i])
		}
	}
	return m
}

func (c *client) conn(network string) (*dns.Conn, error) {
	if conn := c.conns[network]; conn != nil && network == "udp" {
		return conn, nil
	} else if conn != nil {
		// A server closes connections that wait too long for the next batch of questions.
		_ = conn.Close()
	}
	addr := c.udp
	if network == "tcp" {
		addr = c.tcp
	}
	raw, err := (&net.Dialer{Timeout: patience}).Dial(network, addr)
	if err != nil {
		return nil, err
	}
	if u, ok := raw.(*net.UDPConn); ok {
		if err := u.SetReadBuffer(4 << 20); err != nil {
			return nil, err
		}
	}
	conn := &dns.Conn{Conn: raw, UDPSize: dns.MaxMsgSize}
	c.conns[network] = conn
	return conn, nil
}

// message is the query for a question.
func message(q question, id int) *dns.Msg {
	m := new(dns.Msg)
	m.Id = uint16(id)
	m.RecursionDesired = draw(q.name)%2 == 0
	m.CheckingDisabled = draw(q.name)%5 == 0
	m.Question = []dns.Question{{Name: q.name, Qtype: q.typ, Qclass: q.class}}
	if q.via.size > 0 {
		m.SetEdns0(q.via.size, q.via.do)
	}
	return m
}

// transfer returns the records of a zone as a transfer delivers them.
func (c *client) transfer(zone string) ([]dns.RR, error) {
	t := &dns.Transfer{DialTimeout: patience, ReadTimeout: patience}
	ch, err := t.In(new(dns.Msg).SetAxfr(zone), c.tcp)
	if err != nil {
		return nil, fmt.Errorf("transfer of %s: %w", zone, err)
	}
	var rrs []dns.RR
	for e := range ch {
		if e.Error != nil {
			return rrs, fmt.Errorf("transfer of %s, after %d records: %w", zone, len(rrs), e.Error)
		}
		rrs = append(rrs, e.RR...)
	}
	return rrs, nil
}
