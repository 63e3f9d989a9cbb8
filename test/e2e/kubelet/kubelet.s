// Functions without a body, as in kubelet.go, are allowed where there is a file of assembly.
