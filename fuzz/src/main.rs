//! The command `quarry-fuzz`.
fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|s| s.parse().unwrap()).collect();
    for seed in a[0]..a[1] { let t = std::time::Instant::now(); match quarry_fuzz::store::history(seed, Default::default()) { Ok(s) => println!("{seed} {:?} {s:?}", t.elapsed()), Err(e) => println!("FAIL {seed} {e}") } }
}
