// Package health answers those who ask over HTTP whether this node takes a service's connections: load balancers, by the
// healthCheckNodePort of a service (Servers), and by the node's own /healthz (Node); others, by /proxyMode (Mode).
// Answers are kube-proxy's (pkg/proxy/healthcheck), so that whoever checks need not know who answers.
//
// It knows nothing of services but what it is told, and does not listen for Node and Mode.
package health
