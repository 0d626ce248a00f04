// Keeps the token of the session that has begun, and goes on to the page: no address in the browser's history has it.
import { keep } from "/session.js";

keep(document.querySelector("meta[name=token]").content);
location.replace("/");
