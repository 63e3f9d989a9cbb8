// Package ipam gives pods of this node their addresses and remembers whose they are, in a file that one process at a time has open.
//
// choose.go decides which address it is, without a file; store.go keeps the leases; file.go opens the file.
//
// The file belongs in /run: a reboot forgets it together with the pods. Within a boot, each call is one transaction, so that a
// process that is killed leaves what was there before, or all of what it did.
//
// A file that cannot be read is refused, since to begin anew would give out addresses of running pods. What was in it is still
// known elsewhere: libcni keeps the result of each ADD in /var/lib/cni/results, by container and interface, and on the host
// there is a route for each pod's address, to an interface that has the pod's name for its alias. With the file moved away, Allocate with
// these as static addresses makes the leases anew. Without that, the node's pods have to be started anew: drain it, remove the file.
//
// It sets up no interfaces, and flushes no conntrack entries of addresses that are free again.
package ipam
