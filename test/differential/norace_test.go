//go:build !race

package differential

// raceDetector says that the test is built with the race detector.
const raceDetector = false
