// One GET with the JDK's HttpClient, or with URLConnection where a second argument says so: prints the status. A JVM finds
// its proxy and its trust store in its properties alone.

import java.net.HttpURLConnection;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

public class Get {
    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(arguments[0]);
        if (arguments.length > 1) {
            System.out.println(((HttpURLConnection) uri.toURL().openConnection()).getResponseCode());
            return;
        }
        HttpClient client = HttpClient.newBuilder().proxy(ProxySelector.getDefault()).build();
        System.out.println(client.send(HttpRequest.newBuilder(uri).build(), BodyHandlers.ofString()).statusCode());
    }
}
