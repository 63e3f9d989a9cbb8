package standin

import "k8s.io/apimachinery/pkg/runtime"

// DropWatches cuts the connection of every watch that runs. Clients find the server there when they come back.
func (s *Server) DropWatches() { s.history.drop() }

// ForgetHistory makes every resource version that was handed out so far too old to start a watch from, or to go on with
// a list in pages: 410, as after a compaction. Watches that run go on.
func (s *Server) ForgetHistory() { s.history.forget() }

// Reset puts another history in the place of this one, as restoring a backup of etcd does: only objs exist, resource
// versions start again from the number at which a new server starts, and every watch is cut. A client that comes back
// with a resource version of the old history asks for what has not happened yet.
func (s *Server) Reset(objs ...runtime.Object) {
	s.helper()
	s.history.reset()
	s.Apply(objs...)
}

// Bookmark sends a bookmark to every running watch that allows them. A real server does so about once a minute.
func (s *Server) Bookmark() { s.history.ring() }

// Refuse answers every request about objects of kind with the HTTP status code, such as 403, 404, 429 or 500. With code
// 0 it serves them again. Watches that run go on.
func (s *Server) Refuse(kind string, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[kind] = code
}

// WatchList says whether watches may ask for the initial events (KEP-3157). Where they may not, the answer to one is 422,
// Invalid, as servers give that know of the feature but have it off.
func (s *Server) WatchList(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noList = !on
}

func (s *Server) watchList() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.noList
}

func (s *Server) refusal(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[kind]
}
