// One GET with the JDK's HttpClient, or with URLConnection if there is a second argument: prints the status. A JVM reads its
// proxy and its trust store only from properties; `proxy.user` and `proxy.password` are the credential for the proxy.

import java.net.Authenticator;
import java.net.HttpURLConnection;
import java.net.PasswordAuthentication;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

public class Get {
    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(arguments[0]);
        String user = System.getProperty("proxy.user");
        HttpClient.Builder builder = HttpClient.newBuilder().proxy(ProxySelector.getDefault());
        if (user != null) {
            char[] password = System.getProperty("proxy.password").toCharArray();
            Authenticator authenticator = new Authenticator() {
                @Override
                protected PasswordAuthentication getPasswordAuthentication() {
                    return getRequestorType() == RequestorType.PROXY ? new PasswordAuthentication(user, password) : null;
                }
            };
            Authenticator.setDefault(authenticator);
            builder.authenticator(authenticator);
        }
        if (arguments.length > 1) {
            System.out.println(((HttpURLConnection) uri.toURL().openConnection()).getResponseCode());
            return;
        }
        HttpClient client = builder.build();
        System.out.println(client.send(HttpRequest.newBuilder(uri).build(), BodyHandlers.ofString()).statusCode());
    }
}
