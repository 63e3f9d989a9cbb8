package hostsmgr

import (
	"container/heap"
	"time"
)

const (
	// paceBurst is how many rewrites of one file are looked at as they come. A pod of many containers that all start has
	// its file rewritten by the kubelet once for each.
	paceBurst = 20
	// paceForgive is how long it takes until one rewrite is forgotten.
	paceForgive = 10 * time.Second
	paceFirst   = time.Second
	paceLast    = 30 * time.Second

	retryFirst = time.Second
	retryLast  = time.Minute
)

// pace decides how soon a rewrite of a file by somebody else is looked at: at once, unless there were many of late, then
// after a time that doubles. The zero value is ready.
type pace struct {
	n    int
	last time.Time // when the last one of n was forgotten, or the first counted
}

// disturbed counts a rewrite and returns how long to wait before it is looked at.
func (p *pace) disturbed(now time.Time) time.Duration {
	if p.n == 0 {
		p.last = now
	}
	forgotten := min(int(now.Sub(p.last)/paceForgive), p.n)
	p.n -= forgotten
	p.last = p.last.Add(time.Duration(forgotten) * paceForgive)
	if p.n == 0 {
		p.last = now
	}
	p.n++
	if p.n <= paceBurst {
		return 0
	}
	p.n = min(p.n, paceBurst+6)
	return min(paceFirst<<(p.n-paceBurst-1), paceLast)
}

// excuse takes back the last rewrite: it was our own.
func (p *pace) excuse() { p.n = max(0, p.n-1) }

// retry returns how long to wait after failing n times in a row.
func retry(n int) time.Duration {
	return min(retryFirst<<min(n-1, 10), retryLast)
}

// later holds the pods that are to be looked at some time, the next one first. It implements heap.Interface.
type later []*pod

func (l later) Len() int           { return len(l) }
func (l later) Less(i, j int) bool { return l[i].file.due.Before(l[j].file.due) }
func (l later) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].file.place, l[j].file.place = i+1, j+1
}
func (l *later) Push(x any) {
	p := x.(*pod)
	*l = append(*l, p)
	p.file.place = len(*l)
}
func (l *later) Pop() any {
	n := len(*l) - 1
	p := (*l)[n]
	(*l)[n], *l = nil, (*l)[:n]
	p.file.place = 0
	return p
}

// set puts p down for due, or sooner if it is down for sooner.
func (l *later) set(p *pod, due time.Time) {
	switch f := &p.file; {
	case f.place == 0:
		f.due = due
		heap.Push(l, p)
	case due.Before(f.due):
		f.due = due
		heap.Fix(l, f.place-1)
	}
}

func (l *later) remove(p *pod) {
	if p.file.place > 0 {
		heap.Remove(l, p.file.place-1)
	}
}

// take returns a pod that is due, nil if none is.
func (l *later) take(now time.Time) *pod {
	if len(*l) == 0 || (*l)[0].file.due.After(now) {
		return nil
	}
	return heap.Pop(l).(*pod)
}
