//! Tests of the HTTP side over real sockets.
