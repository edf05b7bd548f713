//! Both bodies keep the contract of the seam.

use quarry_engine::net::conformance::check_transport;

use super::rig::BodyRig;
use crate::config::Carrier;

#[test]
fn quic_keeps_the_contract() {
    check_transport(&mut BodyRig::new(Carrier::Quic));
}

#[test]
fn tcp_keeps_the_contract() {
    check_transport(&mut BodyRig::new(Carrier::Tcp));
}
