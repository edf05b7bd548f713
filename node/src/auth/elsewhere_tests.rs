//! Two nodes: the tokens of one's identity API are good at the other.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Config, Source};
use crate::node::{self, Node};

async fn started(dir: &Path, more: &str) -> Node {
    let text = format!(
        "[node]\ndata = \"data\"\n[listen]\nobject = \"127.0.0.1:0\"\nidentity = \"127.0.0.1:0\"\nvolume = \"127.0.0.1:0\"\n\
         admin = \"127.0.0.1:0\"\n[[disk]]\npath = \"disk0\"\nindex = \"index0\"\nsize = \"256M\"\n{more}"
    );
    let config = Config::parse(Source { file: &dir.join("quarry.toml"), text: &text }).unwrap();
    let users = node::users(&config, false).unwrap();
    Node::start(&config, &users, Box::new(|_, _, _| ())).await.unwrap()
}

/// Status, and the whole answer.
async fn ask(at: SocketAddr, what: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{what} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

/// A token of `demo`, and its project.
async fn token(node: &Node, password: &str) -> (String, String) {
    let user = format!(r#"{{"name":"demo","domain":{{"name":"Default"}},"password":"{password}"}}"#);
    let scope = r#"{"project":{"name":"demo","domain":{"name":"Default"}}}"#;
    let body = format!(
        r#"{{"auth":{{"identity":{{"methods":["password"],"password":{{"user":{user}}}}},"scope":{scope}}}}}"#
    );
    let (status, answer) = ask(node.identity, "POST /v3/auth/tokens", &[], &body).await;
    assert_eq!(status, 201, "{answer}");
    let header =
        answer.lines().find_map(|line| line.to_lowercase().strip_prefix("x-subject-token: ").map(str::len));
    let line = answer.lines().find(|line| line.to_lowercase().starts_with("x-subject-token: ")).unwrap();
    let token = line[line.len() - header.unwrap()..].trim().to_owned();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    (token, body["token"]["project"]["id"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn tokens_of_another_keystone_are_good_and_without_it_nobody_is_judged() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let keystone = started(one.path(), "").await;
    let users = crate::auth::users_file::load_or_generate(&one.path().join("data")).unwrap();
    let password = users.users[0].password.0.clone();
    let external = format!(
        "[identity]\nexternal = {{ url = \"http://{}/v3\", user = \"demo\", password = \"{password}\", project = \"demo\" }}\n",
        keystone.identity
    );
    let node = started(two.path(), &external).await;
    let (good, project) = token(&keystone, &password).await;
    let (own, _) = {
        let users = crate::auth::users_file::load_or_generate(&two.path().join("data")).unwrap();
        token(&node, &users.users[0].password.0).await
    };
    let asked =
        async |at: SocketAddr, what: &str, token: &str| ask(at, what, &[("X-Auth-Token", token)], "").await.0;
    let container = format!("PUT /v1/AUTH_{project}/c");
    assert_eq!(asked(node.object, &container, &good).await, 201);
    assert_eq!(asked(node.volume, "GET /v3/volumes", &good).await, 200);
    assert_eq!(asked(node.volume, "GET /v3/os-services", &good).await, 200, "its roles count");
    assert_eq!(asked(node.object, &container, "gAAAAbad").await, 401);
    assert_eq!(asked(node.volume, "GET /v3/volumes", "any").await, 401);
    assert_eq!(asked(node.object, "GET /v1/AUTH_other", &good).await, 403);
    assert_eq!(
        asked(node.identity, "GET /v3/users", &good).await,
        401,
        "this node's users are none of theirs"
    );
    // This node's own tokens need nobody.
    let (late, _) = token(&keystone, &password).await;
    keystone.stop().await;
    assert_eq!(asked(node.volume, "GET /v3/volumes", &own).await, 200);
    assert_eq!(asked(node.volume, "GET /v3/volumes", &good).await, 200, "what was said a moment ago is good");
    assert_eq!(asked(node.volume, "GET /v3/volumes", &late).await, 503);
    assert_eq!(asked(node.object, &container, &late).await, 503);
    node.stop().await;
}
